//! Downloads into the cache. What was interrupted goes on where it stopped, in the next try and the next run.
use super::client::{Client, Error, Metadata, lock};
use super::{CONFIG, Hub, HubId, INDEX, MAIN, Part, WEIGHTS, is_small, shards};
use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::cmp::Ordering;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Tries of a file that bring nothing, one after another.
const TRIES: u32 = 5;
/// Between two looks at a file that another process downloads.
const WAIT: Duration = Duration::from_millis(100);

impl Hub {
    /// Downloads what is missing; `lacks` says what that is.
    pub(super) fn download(&self, id: &HubId, part: Part, lacks: &str) -> Result<PathBuf> {
        let client = Client::new(self.token.clone(), self.patience);
        // A branch may have slashes.
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, id.name, id.revision.replace('/', "%2F"));
        let info = client.info(&url).map_err(|error| self.refused(id, lacks, &error))?;
        let commit = info.sha;
        ensure!(!commit.is_empty() && commit.chars().all(|c| c.is_ascii_hexdigit()), "{commit:?} is no commit");
        // All files of one commit, whatever happens to the branch meanwhile.
        let transfer = Transfer { hub: self, id, lacks, client, commit: &commit };
        let dir = self.folder(id).join("snapshots").join(&commit);
        let there: Vec<&str> = info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        ensure!(there.contains(&CONFIG), "{id} has no {CONFIG}: it is no model that transformers could load");
        if self.visible || part == Part::All {
            let _ = writeln!(std::io::stderr(), "Downloading {id} to {}", dir.display());
        }
        let small = |file: &&str| match part {
            Part::Config => *file == CONFIG,
            Part::All => is_small(file),
        };
        for file in there.iter().copied().filter(small) {
            transfer.file(&dir, file)?;
        }
        if part == Part::All {
            for file in weights(id, &dir, &there)? {
                transfer.file(&dir, &file)?;
            }
        }
        if id.revision != commit {
            let name = self.folder(id).join("refs").join(&id.revision);
            let written =
                std::fs::create_dir_all(name.parent().unwrap_or(&name)).and_then(|()| std::fs::write(&name, &commit));
            written.with_context(|| format!("cannot write to the cache {}", self.cache.display()))?;
        }
        Ok(dir)
    }

    /// Why the hub gives nothing, and what to do.
    fn refused(&self, id: &HubId, lacks: &str, error: &Error) -> anyhow::Error {
        let (hub, HubId { name, revision }) = (&self.endpoint, id);
        match status(error) {
            Some(404) if revision != MAIN => {
                anyhow!("{lacks}, and {hub} has no model {name} with a revision {revision}")
            }
            Some(404) => anyhow!("{lacks}, and {hub} has no model of that name"),
            Some(401 | 403) if self.token.is_some() => anyhow!(
                "{lacks}, and {hub} does not give it to the owner of this token: check the name, and ask for access on {hub}/{name}"
            ),
            // The hub says the same of names that it does not know.
            Some(401 | 403) => anyhow!(
                "{lacks}, and {hub} has no such model for everybody: check the name; if it is gated or private, ask for access on {hub}/{name} and set HF_TOKEN"
            ),
            Some(code) => anyhow!("{lacks}, and {hub} answers with HTTP status {code}: try again later"),
            None if error.to_string().contains("certificate") => anyhow!(
                "{lacks}, and {hub} has a certificate that this machine does not trust ({error}): if a proxy reads along, name the file with its certificates in SSL_CERT_FILE"
            ),
            None => anyhow!(
                "{lacks}, and it cannot be downloaded from {hub} ({error}): connect to the network, or give a directory"
            ),
        }
    }
}

/// The HTTP status of a refusal.
fn status(error: &Error) -> Option<u16> {
    match error {
        Error::Http(error) => match **error {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

/// Files with the weights, as the index says or all in one.
fn weights(id: &HubId, dir: &Path, there: &[&str]) -> Result<Vec<String>> {
    if there.contains(&WEIGHTS) {
        return Ok(vec![WEIGHTS.into()]);
    }
    if !there.contains(&INDEX) {
        let pickled = there.iter().any(|file| file.ends_with(".bin") || file.ends_with(".pth"));
        let hint = if pickled { ", only weights in PyTorch's own format" } else { "" };
        bail!("{id} has no {WEIGHTS}{hint}: choose a model with safetensors");
    }
    let shards = shards(&dir.join(INDEX))?;
    match shards.iter().find(|shard| shard.contains('/') || !there.contains(&shard.as_str())) {
        Some(shard) => bail!("{id} lacks {shard}, which its {INDEX} names"),
        None => Ok(shards.into_iter().collect()),
    }
}

/// A model that is being downloaded.
struct Transfer<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    lacks: &'a str,
    client: Client,
    commit: &'a str,
}

impl Transfer<'_> {
    /// Brings one file into the snapshot.
    fn file(&self, dir: &Path, file: &str) -> Result<()> {
        let (mut failures, mut pause, mut had) = (0, self.hub.pause, 0);
        while !dir.join(file).is_file() {
            let error = match self.attempt(dir, file) {
                Ok(()) => break,
                Err(error) => error,
            };
            match status(&error) {
                Some(code @ (400..=407 | 409..=415 | 417..=428)) => {
                    let context = format!("HTTP status {code} for {file}");
                    return Err(self.hub.refused(self.id, self.lacks, &error).context(context));
                }
                // Another process downloads it: in the end it is there.
                None if matches!(error, Error::Locked(_)) => {
                    std::thread::sleep(WAIT);
                    continue;
                }
                _ => {}
            }
            let have = self.part(file).map_or(0, |part| size(&part));
            if have > had {
                (failures, pause, had) = (0, self.hub.pause, have);
            }
            failures += 1;
            if failures == TRIES {
                let why = self.hub.refused(self.id, self.lacks, &error);
                return Err(why.context(format!("{file} was tried {TRIES} times; the next run goes on from there")));
            }
            std::thread::sleep(pause);
            pause *= 2;
        }
        Ok(())
    }

    /// One try, which goes on where the one before it was cut off.
    fn attempt(&self, dir: &Path, file: &str) -> Result<(), Error> {
        let url = self.url(file);
        let metadata = self.client.metadata(&url)?;
        let blob = self.blob(&metadata);
        std::fs::create_dir_all(blob.parent().unwrap_or(dir))?;
        let _lock = lock(&blob)?;
        // If it is there it is of another revision, or another process was faster.
        if size(&blob) != metadata.size || !blob.is_file() {
            let part = blob.with_extension("part");
            if size(&part) >= metadata.size {
                // Nothing can be asked for after its end.
                let _ = std::fs::remove_file(&part);
            }
            let bar = Bar::new(self.hub.visible, file, metadata.size);
            self.client.fetch(&url, &part, |bytes| bar.0.set_position(bytes))?;
            match size(&part).cmp(&metadata.size) {
                Ordering::Equal => std::fs::rename(&part, &blob)?,
                Ordering::Less => return Err(std::io::Error::other("the transfer was cut off").into()),
                Ordering::Greater => {
                    // A server that does not know ranges has sent all of it again.
                    let _ = std::fs::remove_file(&part);
                    return Err(std::io::Error::other("its length is wrong").into());
                }
            }
        }
        match link(&blob, &dir.join(file)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn blob(&self, metadata: &Metadata) -> PathBuf {
        self.hub.folder(self.id).join("blobs").join(&metadata.etag)
    }

    fn url(&self, file: &str) -> String {
        format!("{}/{}/resolve/{}/{file}", self.hub.endpoint, self.id.name, self.commit)
    }

    /// Where a file's first bytes wait for the others.
    fn part(&self, file: &str) -> Option<PathBuf> {
        let metadata = self.client.metadata(&self.url(file)).ok()?;
        Some(self.blob(&metadata).with_extension("part"))
    }
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |found| found.len())
}

/// Gives a blob a name in a snapshot, as Hugging Face's tools do.
fn link(blob: &Path, name: &Path) -> std::io::Result<()> {
    let (Some(dir), Some(etag)) = (name.parent(), blob.file_name()) else {
        return Err(std::io::ErrorKind::NotFound.into());
    };
    std::fs::create_dir_all(dir)?;
    std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), name)
}

/// Shows how a file comes.
struct Bar(ProgressBar);

impl Bar {
    fn new(visible: bool, file: &str, size: u64) -> Self {
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(size), target);
        let template = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(file.to_owned());
        Bar(bar)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
