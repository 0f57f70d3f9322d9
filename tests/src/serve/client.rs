//! A server process, and an HTTP client that may misbehave.
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Nothing takes longer unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `wootz serve` of tiny-chat on the CPU. Killed when dropped.
pub struct Server {
    child: Child,
    address: SocketAddr,
    stderr: Arc<Mutex<String>>,
    _home: tempfile::TempDir,
}

impl Server {
    /// Starts a server on any port, with more `args`, and waits until it serves.
    pub fn start(args: &[&str]) -> Result<Self> {
        Server::start_on("0", args)
    }

    /// The same on a port.
    pub fn start_on(port: &str, args: &[&str]) -> Result<Self> {
        Server::start_with(port, args, &[])
    }

    /// The same with more variables of the environment.
    pub fn start_with(port: &str, args: &[&str], variables: &[(&str, &str)]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["wootz-cli", "serve", "--device", "cpu", "--port", port])
            .args(args)
            .env("HOME", home.path())
            .env_remove("WOOTZ_API_KEY")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stderr.take().context("stderr")?);
        let (stderr, mut address) = (Arc::new(Mutex::new(String::new())), None);
        while address.is_none() {
            let mut line = String::new();
            if lines.read_line(&mut line)? == 0 {
                bail!("no server: {:?}, {}", child.wait()?, locked(&stderr));
            }
            address = line.split("Listening on http://").nth(1).map(|address| address.trim().parse());
            stderr.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_str(&line);
        }
        let address = address.context("an address")??;
        let own = stderr.clone();
        std::thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
                own.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push_str(&std::mem::take(&mut line));
            }
        });
        let server = Server { child, address, stderr, _home: home };
        until("a ready server", || Ok(server.get("/health").is_ok_and(|answer| answer.status == 200)))?;
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has said on stderr.
    pub fn stderr(&self) -> String {
        locked(&self.stderr)
    }

    /// A GET request.
    pub fn get(&self, path: &str) -> Result<Answer> {
        Connection::open(self.address)?.ask("GET", path, b"")
    }

    /// A POST request with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        Connection::open(self.address)?.ask("POST", path, body.to_string().as_bytes())
    }

    /// The sum of a metric's samples; `name` without its prefix. 0 where there are none.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = String::from_utf8(self.get("/metrics")?.body)?;
        let of = |line: &str| -> Option<f64> {
            let (series, value) = line.rsplit_once(' ')?;
            let series = series.split('{').next()?;
            series.ends_with(name).then(|| value.parse().ok())?
        };
        Ok(text.lines().filter(|line| !line.starts_with('#')).filter_map(of).sum())
    }

    /// Waits until nothing runs or waits and no block of the KV cache is held.
    pub fn at_rest(&self) -> Result<()> {
        let names = ["num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"];
        until("an idle engine with an empty cache", || {
            for name in names {
                if self.metric(name)? != 0.0 {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) -> Result<()> {
        let line = format!("kill -{name} {}", self.child.id());
        ensure!(Command::new("sh").args(["-c", &line]).status()?.success(), "{line}");
        Ok(())
    }

    /// Waits for the process to end by itself.
    pub fn ended(&mut self) -> Result<ExitStatus> {
        let mut status = None;
        until("the end of the process", || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("a status")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
        if std::thread::panicking() {
            eprintln!("{}", self.stderr());
        }
    }
}

fn locked(text: &Mutex<String>) -> String {
    text.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
}

/// Waits for something, by asking again and again.
pub fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done()? {
        ensure!(Instant::now() < end, "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// An answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// All of it.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{}: {:?}", self.status, String::from_utf8_lossy(&self.body)))
    }

    /// An error of a status, in OpenAI's shape.
    pub fn refused(&self, status: u16) -> Result<String> {
        ensure!(
            self.status == status,
            "{} instead of {status}: {:?}",
            self.status,
            String::from_utf8_lossy(&self.body)
        );
        let error = &self.json()?["error"];
        let whole = error["message"].is_string() && error["type"].is_string();
        ensure!(whole && error.get("param").is_some() && error.get("code").is_some(), "{error}");
        Ok(error["message"].as_str().unwrap_or_default().to_owned())
    }
}

/// A connection, used for one request.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects. Reads and writes that take for ever are errors.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// Says that nothing more comes.
    pub fn close_sending(&mut self) -> Result<()> {
        Ok(self.stream.get_mut().shutdown(Shutdown::Write)?)
    }

    /// Sends a request.
    pub fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Result<()> {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n"
        );
        self.send(&[head.as_bytes(), body].concat())
    }

    /// Sends a request and reads all of the answer.
    pub fn ask(mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        // A server that refuses the body may close before it has read it all: then its answer says why.
        let sent = self.request(method, path, body);
        let answer = self.answer();
        if answer.is_err() {
            sent?;
        }
        answer
    }

    /// Reads all of an answer.
    pub fn answer(mut self) -> Result<Answer> {
        let (status, headers) = self.head()?;
        let mut answer = Answer { status, headers, body: Vec::new() };
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = self.chunk()? {
                answer.body.extend(chunk);
            }
        } else if let Some(length) = answer.header("content-length") {
            answer.body.resize(length.parse()?, 0);
            self.stream.read_exact(&mut answer.body)?;
        } else {
            self.stream.read_to_end(&mut answer.body)?;
        }
        Ok(answer)
    }

    /// All that comes until the server closes.
    pub fn rest(mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads status and headers.
    fn head(&mut self) -> Result<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).with_context(|| format!("{first:?}"))?.parse()?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok((status, headers))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the connection was closed");
        Ok(line.trim_end().to_owned())
    }

    /// The next chunk of a body; `None` after the last.
    fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let length = usize::from_str_radix(&line, 16).with_context(|| format!("a chunk's length: {line:?}"))?;
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk)?;
        chunk.truncate(length);
        Ok((length > 0).then_some(chunk))
    }
}

/// A stream of server-sent events.
pub struct Events {
    connection: Connection,
    /// What was read of an event.
    text: String,
}

impl Events {
    /// Posts a request that is answered with a stream; what is not is an answer.
    pub fn open(address: SocketAddr, path: &str, body: &Value) -> Result<Result<Self, Answer>> {
        let mut connection = Connection::open(address)?;
        connection.request("POST", path, body.to_string().as_bytes())?;
        let (status, headers) = connection.head()?;
        let streams =
            headers.iter().any(|(name, value)| name == "content-type" && value.starts_with("text/event-stream"));
        if status != 200 || !streams {
            let mut body = Vec::new();
            let length = headers.iter().find(|(name, _)| name == "content-length");
            if let Some((_, length)) = length {
                body.resize(length.parse()?, 0);
                connection.stream.read_exact(&mut body)?;
            }
            return Ok(Err(Answer { status, headers, body }));
        }
        Ok(Ok(Events { connection, text: String::new() }))
    }

    /// Name and data of the next event; `None` at the end of the body. A connection that breaks is an error.
    pub fn next(&mut self) -> Result<Option<(String, String)>> {
        while let Some(event) = self.next_raw()? {
            let field = |name: &str| {
                let lines = event.lines().filter_map(|line| line.strip_prefix(name));
                lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
            };
            let (name, data) = (field("event:"), field("data:"));
            // Without data it is a comment that keeps the connection open.
            if !data.is_empty() {
                return Ok(Some((name, data)));
            }
        }
        Ok(None)
    }

    /// The lines of the next event or comment.
    pub fn next_raw(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let rest = self.text.split_off(end + 2);
                return Ok(Some(std::mem::replace(&mut self.text, rest)));
            }
            match self.connection.chunk()? {
                // Events end on characters' ends, chunks need not; the server writes whole events.
                Some(chunk) => self.text.push_str(std::str::from_utf8(&chunk)?),
                None => return Ok(None),
            }
        }
    }
}
