//! Text surgery on PTX that rustc cannot express.

/// The start of an entry's declaration, at the beginning of a line.
const ENTRY: &str = ".visible .entry ";

/// Turns each entry's `// wootz.launch` marker into launch bounds, and raises the alignment of tensor
/// map parameters to 64 bytes.
pub fn launch_bounds(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len() + 4096);
    let mut rest = text;
    while let Some(start) = rest.find(ENTRY) {
        let (before, entry) = rest.split_at(start);
        out.push_str(before);
        let body = entry.find("\n{").ok_or("an entry without a body")?;
        let end = entry.find("\n}").ok_or("an entry without an end")?;
        let name = entry[ENTRY.len()..].split('(').next().unwrap_or_default();
        let marker = entry[..end]
            .split("// wootz.launch ")
            .nth(1)
            .ok_or_else(|| format!("entry {name} has no launch marker: declare it with entry!"))?;
        let mut fields = marker
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(|field| field.split_once('=').map_or("", |(_, value)| value));
        let mut field = || {
            fields
                .next()
                .and_then(|value| value.parse::<u32>().ok())
                .ok_or_else(|| format!("entry {name}: a broken launch marker"))
        };
        let (threads, min_blocks, cluster) = (field()?, field()?, field()?);
        out.push_str(&entry[..body].replace(".align 16 .b8", ".align 64 .b8"));
        out.push_str(&format!("\n.maxntid {threads}, 1, 1\n.minnctapersm {min_blocks}"));
        if cluster > 1 {
            out.push_str(&format!("\n.reqnctapercluster {cluster}, 1, 1"));
        }
        out.push_str(&entry[body..end + 2]);
        rest = &entry[end + 2..];
    }
    out.push_str(rest);
    Ok(out)
}

/// One complete PTX per entry: everything that is not an entry, then the entry.
pub fn split(text: &str) -> Vec<(String, String)> {
    let mut common = String::new();
    let mut entries = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(ENTRY) {
        let (before, entry) = rest.split_at(start);
        common.push_str(before);
        let end = entry.find("\n}").map_or(entry.len(), |end| end + 2);
        let name = entry[ENTRY.len()..].split('(').next().unwrap_or_default().trim();
        entries.push((name.to_owned(), &entry[..end]));
        rest = &entry[end..];
    }
    common.push_str(rest);
    let common: String = common
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"))
        .fold(String::new(), |s, line| s + line + "\n");
    entries.into_iter().map(|(name, entry)| (name, format!("{common}\n{entry}\n"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PTX: &str = ".version 8.0\n.target sm_90a\n\n\t// .globl\ta\n.visible .entry a(\n\t.param .align 16 .b8 a_param_0[128]\n)\n{\n\t// begin inline asm\n\t// wootz.launch threads=384 min_blocks=1 cluster=2\n\t// end inline asm\n\tret;\n\n}\n.visible .entry b(\n\n)\n{\n\t// wootz.launch threads=32 min_blocks=2 cluster=1\n\tret;\n}\n";

    #[test]
    fn bounds_alignment_and_split() {
        let entries = split(&launch_bounds(PTX).unwrap());
        assert_eq!(entries.len(), 2);
        let (name, a) = &entries[0];
        assert_eq!(name, "a");
        assert!(a.starts_with(".version 8.0\n.target sm_90a\n"));
        assert!(a.contains(
            ".align 64 .b8 a_param_0[128]\n)\n.maxntid 384, 1, 1\n.minnctapersm 1\n.reqnctapercluster 2, 1, 1\n{"
        ));
        assert!(!a.contains("entry b"));
        assert!(entries[1].1.contains(".maxntid 32, 1, 1\n.minnctapersm 2\n{"));
    }

    #[test]
    fn an_entry_without_marker_is_refused() {
        assert!(launch_bounds(&PTX.replace("// wootz.launch threads=32", "")).unwrap_err().contains("entry b"));
    }
}
