//! `wootz serve ORG/NAME`: a model from a hub, which here is a local one that breaks the first transfer.
use super::client::Server;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

const ID: &str = "makers/tiny";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const WEIGHTS: &str = "model.safetensors";

/// Paths and ranges that were asked for.
type Heard = Arc<Mutex<Vec<String>>>;

fn files() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-chat")
}

/// A hub with tiny-chat's files under another name.
fn start() -> Result<(String, Heard)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    let heard = Heard::default();
    let own = heard.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that goes away is not the hub's fault.
            let _ = answer(&stream, &own);
        }
    });
    Ok((url, heard))
}

fn answer(mut stream: &TcpStream, heard: &Mutex<Vec<String>>) -> Result<()> {
    let (mut head, mut reader) = (String::new(), BufReader::new(stream));
    while !head.ends_with("\r\n\r\n") {
        ensure!(reader.read_line(&mut head)? > 0, "no request");
    }
    let path = head.split(' ').nth(1).context("a path")?;
    if path.starts_with(&format!("/api/models/{ID}/")) {
        let names = std::fs::read_dir(files())?.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
        let names = names.collect::<std::io::Result<Vec<_>>>()?;
        let siblings: Vec<_> = names.iter().map(|name| json!({ "rfilename": name })).collect();
        let body = json!({ "sha": COMMIT, "siblings": siblings }).to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        return Ok(stream.write_all((head + &body).as_bytes())?);
    }
    let Some(name) = path.strip_prefix(&format!("/{ID}/resolve/{COMMIT}/")) else {
        return Ok(stream.write_all(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")?);
    };
    let bytes = std::fs::read(files().join(name))?;
    let head = head.to_ascii_lowercase();
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")).unwrap_or("0-");
    let (start, end) = range.split_once('-').context("a range")?;
    let start: usize = start.parse()?;
    let end = if end.is_empty() { bytes.len() } else { end.parse::<usize>()? + 1 };
    heard.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{name} {range}"));
    let first = name == WEIGHTS && start == 0 && end == bytes.len();
    let lines = format!(
        "HTTP/1.1 206 Partial Content\r\netag: \"{}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-range: bytes {start}-{}/{}\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        name.replace('.', "-"),
        end - 1,
        bytes.len(),
        end - start
    );
    stream.write_all(lines.as_bytes())?;
    // The first transfer of the weights breaks off in the middle.
    let sent = if first { &bytes[..bytes.len() / 2] } else { &bytes[start..end] };
    Ok(stream.write_all(sent)?)
}

/// Downloaded, with a transfer that breaks; then served from the cache without a hub; and what nobody has is an error of
/// one line.
pub fn hub() -> Result<()> {
    let (url, heard) = start()?;
    let home = tempfile::tempdir()?;
    let folder = home.path().to_str().context("a path")?;
    let sings = |server: &Server| -> Result<()> {
        let messages = json!([{ "role": "user", "content": "What is 12 plus 7?" }]);
        let asked = json!({ "model": ID, "messages": messages, "temperature": 0, "max_tokens": 16 });
        let answer = server.post("/v1/chat/completions", &asked)?.json()?;
        ensure!(answer["choices"][0]["message"]["content"] == "19" && answer["model"] == ID, "{answer}");
        Ok(())
    };
    let server = Server::start_with("0", &[ID], &[("HF_ENDPOINT", &url), ("HF_HOME", folder)])?;
    sings(&server)?;
    ensure!(server.stderr().contains(&format!("Downloading {ID}")), "{}", server.stderr());
    drop(server);
    let asked = std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner));
    let half = std::fs::metadata(files().join(WEIGHTS))?.len() / 2;
    ensure!(asked.contains(&format!("{WEIGHTS} {half}-")), "no transfer went on where one broke: {asked:?}");
    ensure!(!asked.iter().any(|file| file.starts_with("README")), "nobody reads that: {asked:?}");

    let nobody = [("HF_ENDPOINT", "http://127.0.0.1:9"), ("HF_HOME", folder)];
    let server = Server::start_with("0", &[ID], &nobody)?;
    sings(&server)?;
    drop(server);

    for (id, variable, value, problem) in [
        ("makers/other", "HF_HUB_OFFLINE", "1", "HF_HUB_OFFLINE forbids to download it"),
        ("makers/other", "HF_HUB_OFFLINE", "0", "has no model of that name"),
        ("makers/tiny@v9", "HF_ENDPOINT", "http://127.0.0.1:9", "connect to the network"),
    ] {
        let output = Command::new(std::env::current_exe()?)
            .args(["wootz-cli", "serve", "--device", "cpu", "--port", "0", id])
            .envs([("HF_ENDPOINT", url.as_str()), ("HF_HOME", folder)])
            .env(variable, value)
            .stdin(Stdio::null())
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{id}: {:?} {stderr}", output.status);
        let errors: Vec<_> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        ensure!(errors.len() == 1 && errors[0].contains(problem), "{id}: {stderr}");
    }
    Ok(())
}
