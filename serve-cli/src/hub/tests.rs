//! Against a hub of our own on a local port, which breaks what networks break.
use super::*;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn names_have_one_slash_and_no_tricks() {
    let parsed = |text| HubId::parse(text).map(|id| (id.name, id.revision));
    assert_eq!(parsed("Qwen/Qwen3-0.6B"), Some(("Qwen/Qwen3-0.6B".into(), "main".into())));
    assert_eq!(parsed("a/b@refs/pr/1"), Some(("a/b".into(), "refs/pr/1".into())));
    for text in
        ["", "gpt2", "a/b/c", "./a", "../a", "/a/b", "a/", "/b", "a/..", "a/b@", "a/b@../../x", "a b/c", "a/b@x//y"]
    {
        assert_eq!(parsed(text), None, "{text:?}");
    }
    assert_eq!(HubId::parse("a/b").unwrap().to_string(), "a/b");
    assert_eq!(HubId::parse("a/b@v1").unwrap().to_string(), "a/b@v1");
}

#[test]
fn the_environment_is_read_as_other_tools_read_it() {
    let hub = |vars: &[(&str, &str)]| {
        let vars: HashMap<String, OsString> = vars.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        Hub::from_vars(false, |name| vars.get(name).cloned())
    };
    let plain = hub(&[("HOME", "/h")]).unwrap();
    assert_eq!(plain.cache, Path::new("/h/.cache/huggingface/hub"));
    assert_eq!((plain.endpoint.as_str(), plain.token.clone(), plain.offline), ("https://huggingface.co", None, false));
    assert_eq!(hub(&[("HOME", "/h"), ("HF_HOME", "/f")]).unwrap().cache, Path::new("/f/hub"));
    assert_eq!(hub(&[("HF_HOME", "/f"), ("HF_HUB_CACHE", "/c")]).unwrap().cache, Path::new("/c"));
    let all = [("HOME", "/h"), ("HF_TOKEN", " t\n"), ("HF_HUB_OFFLINE", "True"), ("HF_ENDPOINT", "http://x/")];
    let all = hub(&all).unwrap();
    assert_eq!((all.endpoint.as_str(), all.token.as_deref(), all.offline), ("http://x", Some("t"), true));
    assert!(!hub(&[("HOME", "/h"), ("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    assert!(hub(&[]).unwrap_err().to_string().contains("HF_HOME"));
}

/// What the hub does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Cuts the first so many transfers of the weights in half.
    Cut(usize),
    /// The same, and sends all of a file whatever range is asked for.
    CutWithoutRanges(usize),
    /// Sends half of the first so many transfers of the weights, and then nothing.
    Stall(usize),
    /// Takes connections and says nothing.
    Silent,
    /// Answers with this status to all.
    Status(u16),
    /// Answers with this status to files.
    FileStatus(u16),
    /// None: weights are on another host, as the hub's large files are.
    Elsewhere,
}

struct FakeHub {
    url: String,
    /// First lines and ranges of all requests.
    heard: Arc<Mutex<Vec<String>>>,
    home: tempfile::TempDir,
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    let shard = |seed: usize| (0..300_000).map(|i| (i * seed / 7) as u8).collect::<Vec<u8>>();
    let index = r#"{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}"#;
    vec![
        (".gitattributes", b"x".to_vec()),
        ("README.md", b"# A model".to_vec()),
        (CONFIG, b"{}".to_vec()),
        ("model-1.safetensors", shard(3)),
        ("model-2.safetensors", shard(5)),
        (INDEX, index.into()),
        ("pytorch_model.bin", vec![1; 10]),
        (TOKENIZER, b"{\"a\":1}".to_vec()),
        ("tokenizer_config.json", b"{\"b\":2}".to_vec()),
    ]
}

impl FakeHub {
    fn new(fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        // The other host, which knows no model but files.
        let elsewhere = TcpListener::bind("127.0.0.2:0").unwrap();
        let store = format!("http://{}", elsewhere.local_addr().unwrap());
        for (listener, fault, store) in [(listener, fault, Some(store)), (elsewhere, Fault::None, None)] {
            let own = heard.clone();
            std::thread::spawn(move || {
                let cut = AtomicUsize::new(0);
                for stream in listener.incoming().flatten() {
                    // A client that goes away is not the hub's fault.
                    let _ = serve(&stream, fault, &cut, &own, store.as_deref());
                }
            });
        }
        FakeHub { url, heard, home: tempfile::tempdir().unwrap() }
    }

    fn hub(&self) -> Hub {
        let vars = HashMap::from([
            ("HF_HOME", self.home.path().as_os_str().to_owned()),
            ("HF_ENDPOINT", self.url.clone().into()),
        ]);
        let hub = Hub::from_vars(false, |name| vars.get(name).cloned()).unwrap();
        Hub { pause: Duration::ZERO, patience: Duration::from_millis(500), ..hub }
    }

    /// How often a request with all the parts was heard.
    fn count(&self, parts: &[&str]) -> usize {
        let heard = self.heard.lock().unwrap();
        heard.iter().filter(|request| parts.iter().all(|part| request.contains(part))).count()
    }
}

fn serve(
    mut stream: &TcpStream,
    fault: Fault,
    cut: &AtomicUsize,
    heard: &Mutex<Vec<String>>,
    store: Option<&str>,
) -> std::io::Result<()> {
    let (mut head, mut reader) = (String::new(), BufReader::new(stream));
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let range = head.lines().find_map(|line| Some(line.to_ascii_lowercase().strip_prefix("range: bytes=")?.to_owned()));
    let token = head.lines().find(|line| line.to_ascii_lowercase().starts_with("authorization")).unwrap_or_default();
    let whose = if store.is_some() { "" } else { " elsewhere" };
    heard.lock().unwrap().push(format!("{path} {} {token}{whose}", range.as_deref().unwrap_or_default()));
    let refuse = |status: u16| format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    // Open until the test ends.
    let hold = || stream.try_clone().map(std::mem::forget);
    if fault == Fault::Silent {
        return hold();
    }
    if let Fault::Status(status) = fault {
        return stream.write_all(refuse(status).as_bytes());
    }
    if path.starts_with("/api/models/makers/model/revision/") {
        let names: Vec<_> = files().iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
        let body = serde_json::json!({ "sha": COMMIT, "siblings": names }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        return stream.write_all((head + &body).as_bytes());
    }
    let found = path.strip_prefix(&format!("/makers/model/resolve/{COMMIT}/"));
    let Some((name, bytes)) = found.and_then(|file| files().into_iter().find(|(name, _)| *name == file)) else {
        return stream.write_all(refuse(404).as_bytes());
    };
    if let Fault::FileStatus(status) = fault {
        return stream.write_all(refuse(status).as_bytes());
    }
    if let (Fault::Elsewhere, Some(store), true) = (fault, store, name.starts_with("model-")) {
        let head = format!(
            "HTTP/1.1 302 Found\r\nlocation: {store}{path}\r\nx-linked-etag: \"linked-{}\"\r\nx-repo-commit: \
             {COMMIT}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            etag(name)
        );
        return stream.write_all(head.as_bytes());
    }
    let (start, end) = range.as_deref().and_then(|range| range.split_once('-')).unwrap_or_default();
    let start: usize = start.parse().unwrap_or(0);
    let end: usize = end.parse().map_or(bytes.len(), |last: usize| last + 1);
    let breaks = match fault {
        Fault::Cut(most) | Fault::CutWithoutRanges(most) | Fault::Stall(most) => {
            end == bytes.len() && cut.load(Ordering::SeqCst) < most
        }
        _ => false,
    };
    let ranges = end == 1 || !matches!(fault, Fault::CutWithoutRanges(_));
    let body = if ranges { &bytes[start..end] } else { &bytes[..] };
    let total = bytes.len();
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\netag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-range: bytes \
         {start}-{}/{total}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        etag(name),
        end - 1,
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if breaks && name.starts_with("model-") {
        cut.fetch_add(1, Ordering::SeqCst);
        stream.write_all(&body[..body.len() / 2])?;
        return if matches!(fault, Fault::Stall(_)) { hold() } else { Ok(()) };
    }
    stream.write_all(body)
}

fn etag(name: &str) -> String {
    name.replace('.', "-")
}

fn id() -> HubId {
    HubId::parse("makers/model").unwrap()
}

/// The snapshot has what the engine reads, byte for byte, and nothing else.
fn check(dir: &Path) {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let all = files();
    for name in &names {
        let (_, bytes) = all.iter().find(|(other, _)| other == name).unwrap();
        assert!(std::fs::read(dir.join(name)).unwrap() == *bytes, "{name}");
    }
    let expected =
        ["config.json", "model-1.safetensors", "model-2.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names, expected);
}

#[test]
fn a_model_is_downloaded_once_and_found_offline_afterwards() {
    let fake = FakeHub::new(Fault::None);
    let hub = Hub { token: Some("secret".into()), ..fake.hub() };
    let config = hub.model(&id(), Part::Config).unwrap();
    assert_eq!(fake.count(&["safetensors"]), 0, "a config alone needs no weights");
    let dir = hub.model(&id(), Part::All).unwrap();
    assert_eq!(dir, config);
    check(&dir);
    assert!(fake.count(&["Bearer secret"]) > 0);
    let requests = fake.count(&[]);
    let offline = Hub { offline: true, endpoint: "http://127.0.0.1:1".into(), ..fake.hub() };
    assert_eq!(offline.model(&id(), Part::All).unwrap(), dir);
    let by_commit = HubId { revision: COMMIT.into(), ..id() };
    assert_eq!(offline.model(&by_commit, Part::All).unwrap(), dir);
    assert_eq!(hub.model(&id(), Part::All).unwrap(), dir);
    assert_eq!(fake.count(&[]), requests, "what is in the cache is not asked for");
    // One file is lost: it alone is fetched again, from its blob.
    std::fs::remove_file(dir.join("model-2.safetensors")).unwrap();
    let error = offline.model(&id(), Part::All).unwrap_err().to_string();
    assert!(error.contains("lacks model-2.safetensors") && error.contains("HF_HUB_OFFLINE"), "{error}");
    check(&hub.model(&id(), Part::All).unwrap());
    assert_eq!(fake.count(&["model-1.safetensors"]), 2, "metadata once, bytes once");
}

/// Hugging Face's own tools find it, and could have put it there.
#[test]
fn the_cache_has_the_layout_that_other_tools_know() {
    for fault in [Fault::None, Fault::Elsewhere] {
        let fake = FakeHub::new(fault);
        let dir = fake.hub().model(&id(), Part::All).unwrap();
        let repo = fake.home.path().join("hub/models--makers--model");
        assert_eq!(dir, repo.join("snapshots").join(COMMIT));
        // Without a newline: other tools take all of it for the commit.
        assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
        let mut blobs = BTreeSet::new();
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let linked = if fault == Fault::Elsewhere && name.starts_with("model-") { "linked-" } else { "" };
            let blob = format!("{linked}{}", etag(name));
            assert_eq!(std::fs::read_link(&path).unwrap(), Path::new("../../blobs").join(&blob));
            blobs.insert(blob);
        }
        let found =
            std::fs::read_dir(repo.join("blobs")).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
        let found: BTreeSet<_> = found.filter(|name| !name.ends_with(".lock")).collect();
        assert_eq!(found, blobs, "no parts are left");
    }
}

#[test]
fn large_files_come_from_another_host() {
    let fake = FakeHub::new(Fault::Elsewhere);
    let hub = Hub { token: Some("secret".into()), ..fake.hub() };
    check(&hub.model(&id(), Part::All).unwrap());
    assert_eq!(fake.count(&["model-1.safetensors 0- ", "elsewhere"]), 1, "{:?}", fake.heard.lock().unwrap());
    assert!(fake.count(&["elsewhere"]) > 2);
    assert_eq!(fake.count(&["Bearer secret", "elsewhere"]), 0, "{:?}", fake.heard.lock().unwrap());
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let fake = FakeHub::new(Fault::Cut(3));
    check(&fake.hub().model(&id(), Part::All).unwrap());
    assert_eq!(fake.count(&["model-1.safetensors 150000-"]), 1, "{:?}", fake.heard.lock().unwrap());
    assert_eq!(fake.count(&["model-1.safetensors 0- "]), 1);
}

#[test]
fn a_stalled_transfer_goes_on_where_it_stopped() {
    let fake = FakeHub::new(Fault::Stall(2));
    check(&fake.hub().model(&id(), Part::All).unwrap());
    assert_eq!(fake.count(&["model-1.safetensors 150000-"]), 1, "{:?}", fake.heard.lock().unwrap());
}

#[test]
fn a_hub_that_says_nothing_is_given_up() {
    let fake = FakeHub::new(Fault::Silent);
    let error = fake.hub().model(&id(), Part::All).unwrap_err().to_string();
    assert!(error.contains("timeout") && error.contains("connect to the network"), "{error}");
}

#[test]
fn the_next_run_goes_on_after_one_that_was_given_up() {
    let fake = FakeHub::new(Fault::None);
    let blobs = fake.home.path().join("hub/models--makers--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let (name, bytes) = files().remove(3);
    std::fs::write(blobs.join(etag(name)).with_extension("part"), &bytes[..1000]).unwrap();
    check(&fake.hub().model(&id(), Part::All).unwrap());
    assert_eq!(fake.count(&["model-1.safetensors 1000-"]), 1, "{:?}", fake.heard.lock().unwrap());
    // One that was whole but not named yet cannot be gone on with.
    let fake = FakeHub::new(Fault::None);
    let blobs = fake.home.path().join("hub/models--makers--model/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(etag(name)).with_extension("part"), &bytes).unwrap();
    check(&fake.hub().model(&id(), Part::All).unwrap());
}

#[test]
fn a_hub_without_ranges_costs_another_try_and_no_damage() {
    let fake = FakeHub::new(Fault::CutWithoutRanges(1));
    check(&fake.hub().model(&id(), Part::All).unwrap());
}

#[test]
fn transfers_that_break_for_ever_end() {
    let fake = FakeHub::new(Fault::FileStatus(503));
    let error = format!("{:#}", fake.hub().model(&id(), Part::All).unwrap_err());
    assert!(error.contains("was tried 5 times") && error.contains("503"), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    for (fault, revision, part) in [
        (Fault::Status(404), "main", "no model of that name"),
        (Fault::Status(404), "v9", "with a revision v9"),
        (Fault::Status(401), "main", "set HF_TOKEN"),
        (Fault::FileStatus(403), "main", "set HF_TOKEN"),
        (Fault::Status(500), "main", "status 500"),
    ] {
        let fake = FakeHub::new(fault);
        let id = HubId { revision: revision.into(), ..id() };
        let error = format!("{:#}", fake.hub().model(&id, Part::All).unwrap_err());
        assert!(error.contains(part) && error.contains("neither a directory"), "{error}");
        let with_token = Hub { token: Some("t".into()), ..fake.hub() };
        let error = format!("{:#}", with_token.model(&id, Part::All).unwrap_err());
        assert!(!error.contains("set HF_TOKEN"), "{error}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let home = tempfile::tempdir().unwrap();
    let hub =
        Hub { endpoint: format!("http://{nobody}"), cache: home.path().into(), ..FakeHub::new(Fault::None).hub() };
    let error = hub.model(&id(), Part::All).unwrap_err().to_string();
    assert!(error.contains("connect to the network") && error.contains(&format!("{nobody}")), "{error}");
}
