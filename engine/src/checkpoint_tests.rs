use proptest::prelude::*;

use super::*;

/// A safetensors file with this header and `data` zero bytes... counted up, so that elements differ.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

const TWO: &str =
    r#"{"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"I8","shape":[3],"data_offsets":[8,11]}}"#;

fn open(bytes: Vec<u8>) -> Result<Checkpoint> {
    Checkpoint::from_memory("m.safetensors", bytes)
}

fn message<T>(r: Result<T>) -> String {
    match r {
        Ok(_) => panic!("must be refused"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn tensors_shapes_and_dtypes() {
    let c = open(file(TWO, 11)).unwrap();
    let a = c.expect("a", &[2, 1]).unwrap();
    assert_eq!((a.dtype, a.elements(), a.bytes), (Dtype::F32, 2, &[0, 1, 2, 3, 4, 5, 6, 7][..]));
    assert_eq!(
        message(c.expect("a", &[1, 2])),
        "m.safetensors: tensor a has shape [2, 1], config.json implies [1, 2]; the checkpoint does not fit its config.json"
    );
    assert_eq!(
        message(c.tensor("b")),
        "m.safetensors: tensor b is I8, supported are F32, F16 and BF16; use an unquantized checkpoint"
    );
    assert!(message(c.tensor("model.a")).contains("tensor model.a is missing from m.safetensors"));
    assert!(message(c.tensor("model.a")).ends_with("(it has a)"));
}

#[test]
fn damaged_headers() {
    let cases: &[(Vec<u8>, &str)] = &[
        (vec![], "m.safetensors is truncated: header promises 8 bytes, the file has 0 bytes"),
        (file(TWO, 5), "m.safetensors is truncated: header promises 128 bytes, the file has 122 bytes; download"),
        (file(TWO, 12), "1 bytes follow the last tensor"),
        (file(TWO, 11)[..40].to_vec(), "truncated: header promises 117 bytes, the file has 40 bytes"),
        (u64::MAX.to_le_bytes().to_vec(), "a header of 18446744073709551615 bytes is impossible"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00".to_vec(), "Git LFS pointer"),
        (file("{\"a\":", 0), "damaged safetensors header: EOF"),
        (file("[]", 0), "damaged safetensors header"),
        (file(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8), "damaged safetensors header"),
        (
            file(r#"{"a":{"dtype":"U8","shape":[1152921504606846976],"data_offsets":[0,1152921504606846976]}}"#, 8),
            "truncated: header promises 1152921504.6 GB",
        ),
        (
            file(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
            "damaged safetensors header",
        ),
    ];
    for (bytes, part) in cases {
        let text = message(open(bytes.clone()));
        assert!(text.contains(part), "{text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

#[test]
fn conversions_from_every_dtype() {
    let values = [1.0f32, -2.5, 65504.0, 3.0e38, 0.1, 1.0 / 3.0];
    let header = r#"{"f32":{"dtype":"F32","shape":[6],"data_offsets":[0,24]},"f16":{"dtype":"F16","shape":[6],"data_offsets":[24,36]},"bf16":{"dtype":"BF16","shape":[6],"data_offsets":[36,48]}}"#;
    let mut bytes = file(header, 0);
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes.extend(values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()));
    bytes.extend(values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()));
    let c = open(bytes).unwrap();
    for name in ["f32", "f16", "bf16"] {
        let t = c.tensor(name).unwrap();
        let (mut b, mut h, mut f) = ([0u16; 6], [0u16; 6], [0f32; 6]);
        t.to_bf16(&mut b).unwrap();
        t.to_f16(&mut h).unwrap();
        t.to_f32(&mut f).unwrap();
        for i in 0..6 {
            let source = match name {
                "f32" => values[i],
                "f16" => f16::from_f32(values[i]).to_f32(),
                _ => bf16::from_f32(values[i]).to_f32(),
            };
            assert_eq!(f[i], source, "{name}");
            assert_eq!(b[i], bf16::from_f32(source).to_bits(), "{name}");
            assert_eq!(h[i], f16::from_f32(source).to_bits(), "{name}");
        }
        assert!(message(t.to_bf16(&mut [0; 5])).contains("has 6 elements, the buffer has 5"));
    }
}

#[test]
fn long_tensors_convert_in_order() {
    let n = 3 * CONVERT_CHUNK + 17;
    let header = format!(r#"{{"x":{{"dtype":"F32","shape":[{n}],"data_offsets":[0,{}]}}}}"#, 4 * n);
    let mut bytes = file(&header, 0);
    bytes.extend((0..n).flat_map(|i| (i as f32).to_le_bytes()));
    let c = open(bytes).unwrap();
    let mut out = vec![0f32; n];
    c.tensor("x").unwrap().to_f32(&mut out).unwrap();
    assert!(out.iter().enumerate().all(|(i, v)| *v == i as f32));
}

fn sharded(dir: &Path, index: &str, shards: &[(&str, Vec<u8>)]) {
    std::fs::write(dir.join(INDEX_FILE), index).unwrap();
    for (name, bytes) in shards {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

#[test]
fn directories() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(message(Checkpoint::open(&dir.join("no"))).contains("must be a directory"));
    assert!(message(Checkpoint::open(dir)).contains("nor does model.safetensors.index.json"));
    std::fs::write(dir.join("pytorch_model.bin"), b"x").unwrap();
    assert!(message(Checkpoint::open(dir)).contains("convert the checkpoint to safetensors"));

    let one = r#"{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}"#;
    let other = r#"{"b":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}"#;
    let index = r#"{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
    sharded(dir, index, &[("1.safetensors", file(one, 2))]);
    let text = message(Checkpoint::open(dir));
    assert!(text.contains("2.safetensors does not exist; model.safetensors.index.json lists it"), "{text}");
    sharded(dir, index, &[("2.safetensors", file(one, 2))]);
    let text = message(Checkpoint::open(dir));
    assert_eq!(text, "tensor a is in both 1.safetensors and 2.safetensors; remove the stray shard");
    sharded(dir, index, &[("2.safetensors", file(other, 1))]);
    assert!(message(Checkpoint::open(dir)).starts_with("2.safetensors is truncated"));
    sharded(dir, index, &[("2.safetensors", vec![])]);
    assert!(message(Checkpoint::open(dir)).starts_with("2.safetensors is truncated"));
    sharded(dir, index, &[("2.safetensors", file(other, 2))]);
    let c = Checkpoint::open(dir).unwrap();
    assert_eq!(c.data_bytes(), 4);
    assert_eq!(c.tensor("b").unwrap().file, "2.safetensors");

    for (index, part) in [
        (r#"{"weight_map":{"c":"1.safetensors"}}"#, "says that c is in 1.safetensors, where it is not"),
        (r#"{"weight_map":{"c":"../x.safetensors"}}"#, "not a safetensors file beside it"),
        (r#"{"weight_map":{"c":"passwd"}}"#, "not a safetensors file beside it"),
        (r#"{"weight_map":"#, "model.safetensors.index.json is not valid JSON"),
        (r#"{}"#, "model.safetensors.index.json is not valid JSON: missing field"),
    ] {
        sharded(dir, index, &[]);
        let text = message(Checkpoint::open(dir));
        assert!(text.contains(part), "{text}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = open(bytes);
    }

    /// A valid file with bytes replaced in length field and header, then cut.
    #[test]
    fn mutated_files_never_panic(
        edits in prop::collection::vec((0usize..130, any::<u8>()), 0..6),
        cut in prop::option::of(0usize..140),
    ) {
        let mut bytes = file(TWO, 11);
        let n = bytes.len();
        for (at, b) in edits {
            bytes[at % n] = b;
        }
        bytes.truncate(cut.unwrap_or(n));
        match open(bytes) {
            Ok(c) => {
                for name in c.names() {
                    if let Ok(t) = c.tensor(name) {
                        prop_assert_eq!(t.elements(), t.shape.iter().product::<usize>());
                    }
                }
            }
            Err(e) => prop_assert!(!e.to_string().contains('\n')),
        }
    }

    /// Headers that are JSON of the right form with arbitrary numbers.
    #[test]
    fn wild_offsets_never_panic(
        shape in prop::collection::vec(any::<u64>(), 0..4),
        offsets in (any::<u64>(), any::<u64>()),
        dtype in prop::sample::select(vec!["F32", "BF16", "F4", "I64"]),
        data in 0usize..64,
    ) {
        let header = format!(
            r#"{{"a":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{},{}]}}}}"#,
            offsets.0, offsets.1
        );
        if let Ok(c) = open(file(&header, data)) {
            let _ = c.tensor("a");
        }
    }
}
