//! The instructions that the emulator knows, found by trying: every form that PTX has is offered to the decoder.
//!
//! `INSTRUCTIONS.md` is what [`table`] makes of it.

mod families;
mod forms;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::LazyLock;

use crate::Module;
use families::FAMILIES;
use forms::{NAMES, Shape};

/// Options of a group that a row names one by one at most; of more, the first and the last.
const MOST_NAMED: usize = 16;

/// Modifiers of a form: of each group one is taken.
type Groups = Vec<Vec<&'static str>>;

/// What each accepted opcode takes of each group.
type Accepted = Vec<Vec<&'static str>>;

/// Rows of a form that the decoder accepts, and what is left out.
struct Tried {
    accepted: Accepted,
    groups: Groups,
    /// The opcode's fixed first words.
    name: &'static str,
}

/// Whether an opcode with its modifiers, such as `ld.global.v4.b32`, is one that the table lists; the order of
/// the modifiers does not matter.
pub fn lists(opcode: &str) -> bool {
    static ALL: LazyLock<BTreeSet<Vec<String>>> = LazyLock::new(|| {
        let tried = FAMILIES.iter().flat_map(|family| family.forms).map(|form| try_all(form));
        let opcodes = tried.flat_map(|tried| {
            let opcode = move |taken: &Vec<&str>| words(&format!("{}{}", tried.name, taken.concat()));
            tried.accepted.iter().map(opcode).collect::<Vec<_>>()
        });
        opcodes.collect()
    });
    ALL.contains(&words(opcode))
}

fn words(opcode: &str) -> Vec<String> {
    let mut words: Vec<String> = opcode.split('.').map(str::to_owned).collect();
    words.sort_unstable();
    words
}

/// The table in Markdown, as `INSTRUCTIONS.md` has it.
pub fn table() -> String {
    let mut text = HEAD.to_owned();
    let mut chapter = "";
    for family in FAMILIES {
        if family.chapter != chapter {
            chapter = family.chapter;
            let _ = writeln!(text, "\n## {chapter}");
        }
        let _ = writeln!(text, "\n### {}\nPTX: {}. Checked: {}.\n", family.title, family.section, family.checked);
        let mut known = Vec::new();
        let mut unknown = Vec::new();
        for form in family.forms {
            let tried = try_all(form);
            known.extend(rows(&tried.accepted, &tried.groups).iter().map(|row| format!("- `{}{row}`\n", tried.name)));
            unknown.extend(tried.missing());
        }
        known.dedup();
        text.push_str(&known.concat());
        unknown.dedup();
        if !unknown.is_empty() {
            let _ = writeln!(text, "- not known: {}", unknown.join(", "));
        }
    }
    text
}

const HEAD: &str = "# Instructions of the emulator

Made by `cargo run -p ptx-emulator --example instructions`, which offers every form below to the decoder; a test
compares. `{a,b}` is a choice and `{a,}` one that may be left out; `.v2` and the like take as many registers. Everything that
touches memory is checked for bounds, alignment, reads of what was never written and data races; *checked* says what comes on
top of that. What is not listed is an error when the module is parsed, by name and line.
";

impl Tried {
    /// Options that no accepted opcode has, or all of the form if none is accepted.
    fn missing(&self) -> Option<String> {
        if self.accepted.is_empty() {
            let all: String = self.groups.iter().map(|group| choice(group)).collect();
            return Some(format!("`{}{all}`", self.name));
        }
        let unused = |at: usize, options: &[&'static str]| -> Vec<&'static str> {
            options.iter().copied().filter(|option| !self.accepted.iter().any(|taken| taken[at] == *option)).collect()
        };
        let found = self.groups.iter().enumerate().filter_map(|(at, options)| match unused(at, options).as_slice() {
            [] => None,
            [""] => Some(format!("`{}` without `{}`", self.name, choice(&options[1..]))),
            unused => Some(format!("`{}` with `{}`", self.name, choice(unused))),
        });
        let found: Vec<_> = found.collect();
        (!found.is_empty()).then(|| found.join(", "))
    }
}

/// Offers all of a form's opcodes to the decoder.
fn try_all(form: &'static str) -> Tried {
    let (opcode, operands) = form.split_once(' ').unwrap_or((form, ""));
    let (name, mut rest) = opcode.split_at(opcode.find('<').unwrap_or(opcode.len()));
    let (mut groups, mut letters) = (Groups::new(), Vec::new());
    while !rest.is_empty() {
        let (group, after) = match rest.strip_prefix('<').and_then(|rest| rest.split_once('>')) {
            Some(found) => found,
            None => rest.split_at(rest.find('<').unwrap_or(rest.len())),
        };
        let (letter, options) = match group.split_once(':') {
            Some((letter, options)) if letter.len() == 1 => (letter, options),
            _ => ("", group),
        };
        letters.push(letter);
        let options = NAMES.iter().find(|(name, _)| *name == options).map_or(options, |(_, options)| options);
        groups.push(options.split(',').collect());
        rest = after;
    }
    let accepted = product(&groups).into_iter().filter(|taken| {
        let mut operands = operands.to_owned();
        for (letter, option) in letters.iter().zip(taken).filter(|(letter, _)| !letter.is_empty()) {
            operands = Shape::of(option).fill(&operands, letter);
        }
        is_accepted(&format!("{name}{} {operands};", taken.concat()))
    });
    Tried { accepted: accepted.collect(), groups, name }
}

/// Whether a module of this one statement decodes.
fn is_accepted(statement: &str) -> bool {
    let text = format!(
        ".version 8.0\n.target sm_90a\n.address_size 64\n.extern .shared .align 16 .b8 smem[];
.visible .entry k(.param .u64 in) {{\n.reg .pred %p<4>; .reg .b16 %rs<4>; .reg .b32 %r<260>; .reg .b64 %rd<4>;
here: {statement}\n}}"
    );
    Module::parse(&text).is_ok()
}

fn product(groups: &[Vec<&'static str>]) -> Vec<Vec<&'static str>> {
    let mut all = vec![Vec::new()];
    for group in groups {
        let longer = |taken: &Vec<&'static str>| {
            let with = |option: &&'static str| [taken.as_slice(), &[*option]].concat();
            group.iter().map(with).collect::<Vec<_>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all
}

/// The accepted choices as few rows of `{a,b}`: one if any of each group goes with any of the others; else by the group
/// that makes fewest.
fn rows(accepted: &[Vec<&'static str>], groups: &[Vec<&'static str>]) -> Vec<String> {
    if accepted.is_empty() {
        return Vec::new();
    }
    let used = |at: usize| -> Vec<&'static str> {
        groups[at].iter().copied().filter(|option| accepted.iter().any(|taken| taken[at] == *option)).collect()
    };
    let used: Vec<_> = (0..groups.len()).map(used).collect();
    if used.iter().map(Vec::len).product::<usize>() == accepted.len() {
        return vec![used.iter().map(|options| choice(options)).collect()];
    }
    let by = |at: usize| {
        // Options of this group that go with the same of the others stay together.
        let mut classes: Vec<(Accepted, Accepted)> = Vec::new();
        for option in &used[at] {
            let taken: Vec<_> = accepted.iter().filter(|taken| taken[at] == *option).cloned().collect();
            let rest = taken.iter().map(|taken| [&taken[..at], &taken[at + 1..]].concat()).collect();
            match classes.iter_mut().find(|(found, _)| *found == rest) {
                Some((_, all)) => all.extend(taken),
                None => classes.push((rest, taken)),
            }
        }
        if classes.len() < 2 {
            return None;
        }
        Some(classes.iter().flat_map(|(_, taken)| rows(taken, groups)).collect::<Vec<_>>())
    };
    // Of as many, those by the type, which comes last.
    (0..groups.len()).rev().filter_map(by).min_by_key(Vec::len).unwrap_or_default()
}

fn choice(options: &[&str]) -> String {
    match options {
        [one] => (*one).to_owned(),
        [first, .., last] if options.len() > MOST_NAMED => format!("{{{first} … {last}: {}}}", options.len()),
        _ => {
            // The empty choice comes last, where it is seen.
            let named = options.iter().filter(|option| !option.is_empty());
            let empty = options.iter().filter(|option| option.is_empty());
            format!("{{{}}}", named.chain(empty).copied().collect::<Vec<_>>().join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_that_go_together_are_one_row() {
        let groups = vec![vec!["", ".ftz"], vec![".f32", ".f64", ".u32"]];
        let accepted = vec![vec!["", ".f32"], vec!["", ".f64"], vec!["", ".u32"], vec![".ftz", ".f32"]];
        assert_eq!(rows(&accepted, &groups), ["{.ftz,}.f32", "{.f64,.u32}"]);
    }

    #[test]
    fn what_the_decoder_refuses_is_not_listed() {
        assert!(lists("add.rn.ftz.f32") && lists("add.ftz.rn.f32"));
        assert!(!lists("add.rn.s32") && !lists("add.f128"));
    }

    #[test]
    fn the_committed_table_is_what_the_decoder_accepts() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/INSTRUCTIONS.md");
        let found = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            found == table(),
            "INSTRUCTIONS.md is not current: `cargo run -p ptx-emulator --example instructions` rewrites it"
        );
    }
}
