//! One file of the hub by HTTP. The token goes to the hub, and to no other host that it sends us to: large files are
//! elsewhere, behind addresses that are signed already.
use hf_hub::api::sync::ApiError;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

/// Of one host to itself, before its answer.
const MOST_REDIRECTS: usize = 5;
/// Of a transfer, between two looks at how far it is.
const PIECE: usize = 1 << 18;

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
    /// With the hub's token, if there is one.
    pub fn new(token: Option<String>) -> Self {
        // A proxy and the certificates are as the environment says.
        let follows = Agent::config_builder().redirect_auth_headers(RedirectAuthHeaders::SameHost).build().into();
        let stays = Agent::config_builder().max_redirects(0).build().into();
        Client { follows, stays, token }
    }

    /// Asks for a range of bytes, as the owner of the token or as anybody.
    fn get(&self, agent: &Agent, url: &str, range: &str, owner: bool) -> Result<Response<Body>, ApiError> {
        let agent_name = concat!("wootz/", env!("CARGO_PKG_VERSION"));
        let mut request = agent.get(url).header("user-agent", agent_name).header("range", range);
        if let Some(token) = self.token.as_ref().filter(|_| owner) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        request.call().map_err(|error| ApiError::RequestError(Box::new(error)))
    }

    /// The first byte's answer tells the length.
    ///
    /// # Errors
    /// The hub refuses, or does not say what is needed.
    pub fn metadata(&self, url: &str) -> Result<Metadata, ApiError> {
        const FIRST: &str = "bytes=0-0";
        let mut response = self.get(&self.stays, url, FIRST, true)?;
        for _ in 0..MOST_REDIRECTS {
            let Some(path) = location(&response).filter(|location| location.starts_with('/')) else { break };
            response = self.get(&self.stays, &join(url, &path)?, FIRST, true)?;
        }
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag")).ok_or(ApiError::MissingHeader("etag"))?;
        let etag = etag.trim_start_matches("W/").replace('"', "");
        // It becomes the name of a file.
        if etag.is_empty()
            || etag.starts_with('.')
            || !etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            return Err(ApiError::InvalidHeader("etag"));
        }
        let elsewhere =
            location(&response).map(|location| self.get(&self.follows, &location, FIRST, false)).transpose()?;
        let range = elsewhere.as_ref().unwrap_or(&response).headers().get("content-range");
        let range = range.ok_or(ApiError::MissingHeader("content-range"))?.to_str().unwrap_or_default();
        let size = range.rsplit('/').next().and_then(|size| size.parse().ok());
        Ok(Metadata { etag, size: size.ok_or(ApiError::InvalidHeader("content-range"))? })
    }

    /// Appends to `part` what it lacks of a file; tells how many bytes there are.
    ///
    /// # Errors
    /// The transfer breaks; what has come stays.
    pub fn fetch(&self, url: &str, part: &Path, mut there: impl FnMut(u64)) -> Result<(), ApiError> {
        let mut file = OpenOptions::new().create(true).append(true).open(part)?;
        let mut have = file.metadata()?.len();
        let response = self.get(&self.follows, url, &format!("bytes={have}-"), true)?;
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

/// Where a redirect goes.
fn location(response: &Response<Body>) -> Option<String> {
    let location = response.headers().get("location").filter(|_| response.status().is_redirection())?;
    location.to_str().ok().map(str::to_owned)
}

/// A path on the host of another address.
fn join(url: &str, path: &str) -> Result<String, ApiError> {
    let uri: Uri = url.parse().map_err(|_| ApiError::InvalidHeader("location"))?;
    match (uri.scheme_str(), uri.authority()) {
        // `//host/path` is another host.
        (Some(scheme), Some(host)) if !path.starts_with("//") => Ok(format!("{scheme}://{host}{path}")),
        _ => Err(ApiError::InvalidHeader("location")),
    }
}

/// Takes a blob for this process.
///
/// # Errors
/// Another one writes it now.
pub fn lock(blob: &Path) -> Result<Lock, ApiError> {
    let path = blob.with_extension("lock");
    let file = OpenOptions::new().create(true).append(true).open(&path)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(ApiError::LockAcquisition(path)),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}
