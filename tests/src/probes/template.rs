//! PTX text around the instruction that a probe is about.
use super::run::ENTRY;
use super::{Compare, Layout, Probe};
use std::fmt::Write;

/// Threads of a block of elementwise probes.
const THREADS: usize = 256;

/// A module with one entry: parameters `p0` … (addresses) and `m0` … (tensor maps), registers `declarations`,
/// instructions `body`.
pub(super) fn module(buffers: usize, maps: usize, declarations: &str, body: &str) -> String {
    let mut params: Vec<String> = (0..buffers).map(|i| format!(".param .u64 p{i}")).collect();
    params.extend((0..maps).map(|i| format!(".param .align 64 .b8 m{i}[128]")));
    format!(
        ".version 8.4\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 smem[];\n\
         .visible .entry {ENTRY}({}) {{\n{declarations}\n{body}\nret;\n}}\n",
        params.join(", ")
    )
}

/// A probe of one instruction (or a few) that every thread executes on elements of its own.
///
/// The code reads `%a`, `%b`, … (one per input) and writes `%x`, `%y`, … (one per output); `%pa`, `%pb`, … are the
/// addresses of the thread's input elements. Registers for its own use: predicates `%p0`–`%p9`, `%h0`–`%h9` of 16
/// bits, `%r0`–`%r9` of 32, `%l0`–`%l9` of 64.
pub(super) struct Elementwise<'a> {
    /// Group and form.
    pub name: String,
    /// Element size in bytes, and the elements.
    pub inputs: Vec<(usize, Vec<u8>)>,
    /// Element sizes in bytes.
    pub outputs: &'a [usize],
    pub code: &'a str,
}

/// Names of the registers of inputs.
const INPUTS: &str = "abcdefghijkl";
/// Names of the registers of outputs.
const OUTPUTS: &str = "xyzw";

impl Elementwise<'_> {
    pub(super) fn probe(self) -> Probe {
        let n = self.inputs[0].1.len() / self.inputs[0].0;
        assert!(n.is_multiple_of(THREADS), "{}: {n} elements are no whole blocks", self.name);
        assert!(self.inputs.iter().all(|(size, data)| data.len() == size * n), "{}: lengths", self.name);
        let ptx = module(self.inputs.len() + 1, 0, &self.declarations(), &self.body(n));
        let sizes = self.inputs.iter().map(|(size, _)| *size).collect();
        let mut buffers: Vec<Vec<u8>> = self.inputs.into_iter().map(|(_, data)| data).collect();
        buffers.push(vec![0xee; self.outputs.iter().sum::<usize>() * n]);
        Probe {
            name: self.name,
            ptx,
            blocks: (n / THREADS) as u32,
            threads: THREADS as u32,
            shared: 0,
            output: buffers.len() - 1,
            buffers,
            maps: Vec::new(),
            compare: Compare::Exact,
            layout: Layout::Elementwise { inputs: sizes, outputs: self.outputs.to_vec(), n },
        }
    }

    fn declarations(&self) -> String {
        let mut text = ".reg .pred %p<10>; .reg .b16 %h<10>; .reg .b32 %r<10>; .reg .b64 %l<10>;\n\
                        .reg .b32 %at; .reg .b64 %wide, %out;"
            .to_owned();
        let sizes = self.inputs.iter().map(|(size, _)| size).zip(INPUTS.chars());
        for (size, name) in sizes.chain(self.outputs.iter().zip(OUTPUTS.chars())) {
            let _ = write!(text, " .reg .b{} %{name};", 8 * size);
        }
        for (_, name) in self.inputs.iter().zip(INPUTS.chars()) {
            let _ = write!(text, " .reg .b64 %p{name};");
        }
        text
    }

    fn body(&self, n: usize) -> String {
        let mut text = format!(
            "mov.u32 %at, %ctaid.x;\nmul.lo.u32 %at, %at, {THREADS};\nmov.u32 %r0, %tid.x;\nadd.u32 %at, %at, %r0;\n\
             cvt.u64.u32 %wide, %at;\n"
        );
        for (at, ((size, _), name)) in self.inputs.iter().zip(INPUTS.chars()).enumerate() {
            let _ = write!(
                text,
                "ld.param.u64 %p{name}, [p{at}];\nmad.lo.u64 %p{name}, %wide, {size}, %p{name};\n\
                 ld.global.b{} %{name}, [%p{name}];\n",
                8 * size
            );
        }
        let _ = writeln!(text, "{}", self.code);
        let _ = writeln!(text, "ld.param.u64 %out, [p{}];", self.inputs.len());
        let mut start = 0;
        for (size, name) in self.outputs.iter().zip(OUTPUTS.chars()) {
            let _ =
                write!(text, "mad.lo.u64 %l0, %wide, {size}, %out;\nst.global.b{} [%l0+{start}], %{name};\n", 8 * size);
            start += size * n;
        }
        text
    }
}

/// `count` names from a pattern, such as `{%d0, %d1, …}`.
pub(super) fn vector(prefix: &str, count: usize) -> String {
    let names: Vec<String> = (0..count).map(|i| format!("{prefix}{i}")).collect();
    format!("{{{}}}", names.join(", "))
}
