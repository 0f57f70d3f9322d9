//! One file of the hub by HTTP. The token goes to the hub, and to no other host that it sends us to: large files are
//! elsewhere, behind addresses that are signed already.
use serde::Deserialize;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// Of one host to itself, before its answer.
const MOST_REDIRECTS: usize = 5;
/// Bytes of what a hub says of a model; of one with 10,000 files it is 1 MB.
const LONGEST_INFO: u64 = 64 << 20;
/// Of a transfer, between two looks at how far it is.
const PIECE: usize = 1 << 18;

/// Why nothing comes.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The hub refuses, or is not there.
    #[error(transparent)]
    Http(Box<ureq::Error>),
    /// An answer is not what a hub says.
    #[error("no hub's answer: {0}")]
    Answer(&'static str),
    /// Another process has the [`Lock`].
    #[error("another process downloads {}", .0.display())]
    Locked(PathBuf),
    /// A transfer broke, or the disk refuses it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What a revision is.
#[derive(Debug, Deserialize)]
pub struct Info {
    /// The commit.
    pub sha: String,
    /// The files.
    pub siblings: Vec<Sibling>,
}

/// A file of a model.
#[derive(Debug, Deserialize)]
pub struct Sibling {
    /// Its path.
    pub rfilename: String,
}

/// Asks the hub.
pub struct Client {
    /// Goes where it is sent.
    follows: Agent,
    /// Says where it is sent.
    stays: Agent,
    token: Option<String>,
}

/// What is known of a file before it comes.
#[derive(Debug)]
pub struct Metadata {
    /// What its blob is called.
    pub etag: String,
    /// In bytes.
    pub size: u64,
}

/// A blob that nobody else writes.
pub struct Lock(#[expect(dead_code, reason = "it is unlocked when it is closed")] File);

impl Client {
    /// With the hub's token, if there is one. What says nothing for as long as `patience` has broken.
    pub fn new(token: Option<String>, patience: Duration) -> Self {
        // A proxy is as the environment says.
        let tls = TlsConfig::builder().root_certs(roots()).build();
        let config = || {
            let times = Some(patience);
            let config = Agent::config_builder().tls_config(tls.clone()).timeout_connect(times).timeout_per_read(times);
            config.timeout_per_write(times).user_agent(concat!("wootz/", env!("CARGO_PKG_VERSION")))
        };
        let follows = config().redirect_auth_headers(RedirectAuthHeaders::SameHost).build().into();
        let stays = config().max_redirects(0).build().into();
        Client { follows, stays, token }
    }

    /// Asks for a file or a range of its bytes, as the owner of the token or as anybody.
    fn get(&self, agent: &Agent, url: &str, range: Option<&str>, owner: bool) -> Result<Response<Body>, Error> {
        let mut request = agent.get(url);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        if let Some(token) = self.token.as_ref().filter(|_| owner) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|error| Error::Http(Box::new(error)))
    }

    /// What is known of a revision.
    ///
    /// # Errors
    /// The hub refuses, or does not say what is needed.
    pub fn info(&self, url: &str) -> Result<Info, Error> {
        let response = self.get(&self.follows, url, None, true)?;
        let mut text = Vec::new();
        response.into_body().into_reader().take(LONGEST_INFO).read_to_end(&mut text)?;
        serde_json::from_slice(&text).map_err(|_| Error::Answer("a model has neither commit nor files"))
    }

    /// The first byte's answer tells the length.
    ///
    /// # Errors
    /// The hub refuses, or does not say what is needed.
    pub fn metadata(&self, url: &str) -> Result<Metadata, Error> {
        const FIRST: Option<&str> = Some("bytes=0-0");
        let mut response = self.get(&self.stays, url, FIRST, true)?;
        for _ in 0..MOST_REDIRECTS {
            let Some(path) = location(&response).filter(|location| location.starts_with('/')) else { break };
            response = self.get(&self.stays, &join(url, &path)?, FIRST, true)?;
        }
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag")).ok_or(Error::Answer("a file has no etag"))?;
        let etag = etag.trim_start_matches("W/").replace('"', "");
        // It becomes the name of a file.
        if etag.is_empty()
            || etag.starts_with('.')
            || !etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            return Err(Error::Answer("a file's etag is none"));
        }
        let elsewhere =
            location(&response).map(|location| self.get(&self.follows, &location, FIRST, false)).transpose()?;
        let range = elsewhere.as_ref().unwrap_or(&response).headers().get("content-range");
        let range = range.ok_or(Error::Answer("a file has no content-range"))?.to_str().unwrap_or_default();
        let size = range.rsplit('/').next().and_then(|size| size.parse().ok());
        Ok(Metadata { etag, size: size.ok_or(Error::Answer("a file's content-range is none"))? })
    }

    /// Appends to `part` what it lacks of a file; tells how many bytes there are.
    ///
    /// # Errors
    /// The transfer breaks; what has come stays.
    pub fn fetch(&self, url: &str, part: &Path, mut there: impl FnMut(u64)) -> Result<(), Error> {
        let mut file = OpenOptions::new().create(true).append(true).open(part)?;
        let mut have = file.metadata()?.len();
        let response = self.get(&self.follows, url, Some(&format!("bytes={have}-")), true)?;
        if response.status() != 206 {
            // A server that does not know ranges sends all of it.
            file.set_len(0)?;
            have = 0;
        }
        let (mut body, mut piece) = (response.into_body().into_reader(), vec![0; PIECE]);
        loop {
            there(have);
            let count = body.read(&mut piece)?;
            if count == 0 {
                return Ok(());
            }
            file.write_all(&piece[..count])?;
            have += count as u64;
        }
    }
}

/// What this machine trusts, as SSL_CERT_FILE and SSL_CERT_DIR or the system say: that has the certificate of a company's
/// proxy. Mozilla's list where there is nothing.
fn roots() -> RootCerts {
    let found = rustls_native_certs::load_native_certs().certs;
    if found.is_empty() {
        return RootCerts::WebPki;
    }
    found.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).into()
}

/// Where a redirect goes.
fn location(response: &Response<Body>) -> Option<String> {
    let location = response.headers().get("location").filter(|_| response.status().is_redirection())?;
    location.to_str().ok().map(str::to_owned)
}

/// A path on the host of another address.
fn join(url: &str, path: &str) -> Result<String, Error> {
    let uri: Uri = url.parse().map_err(|_| Error::Answer("a redirect leads nowhere"))?;
    match (uri.scheme_str(), uri.authority()) {
        // `//host/path` is another host.
        (Some(scheme), Some(host)) if !path.starts_with("//") => Ok(format!("{scheme}://{host}{path}")),
        _ => Err(Error::Answer("a redirect leads nowhere")),
    }
}

/// Takes a blob for this process.
///
/// # Errors
/// Another one writes it now.
pub fn lock(blob: &Path) -> Result<Lock, Error> {
    let path = blob.with_extension("lock");
    let file = OpenOptions::new().create(true).append(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(path)),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}
