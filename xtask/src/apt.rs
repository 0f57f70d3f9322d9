//! Debian's packages, for what nothing else provides.

use std::io::{IsTerminal, stdin};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::process::{on_path, output, run, tool};

/// apt-get, as root.
pub struct Apt {
    as_root: Vec<&'static str>,
}

impl Apt {
    /// # Errors
    /// This is no Debian system, or nobody here may become root.
    pub fn new() -> Result<Self> {
        if !on_path("apt-get") {
            bail!("this is not a Debian system");
        }
        Ok(Apt { as_root: root_prefix()? })
    }

    /// Renews the lists of packages.
    pub fn update(&self) -> Result<()> {
        self.run(&["update", "--quiet"])
    }

    /// Installs packages without those that they recommend.
    pub fn install(&self, packages: &[&str]) -> Result<()> {
        // --no-remove: packages may conflict with what is installed (rustc-web with Debian's own rustc, cargo and
        // rustup), and nobody asked us to remove that.
        let mut install = vec!["install", "-y", "--quiet", "--no-remove", "--no-install-recommends"];
        install.extend(packages);
        self.run(&install)
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let mut words = self.as_root.iter().copied().chain(["env", "DEBIAN_FRONTEND=noninteractive"]);
        let mut command = tool(words.next().unwrap_or("env"));
        // What apt does is a hundred lines; what goes wrong it says on stderr.
        command.stdout(Stdio::null());
        run(command.args(words).arg("apt-get").args(args))
    }
}

/// The words before a command that needs root: none as root, else sudo, which may ask for a
/// password only where there is somebody to ask.
fn root_prefix() -> Result<Vec<&'static str>> {
    if output(tool("id").arg("-u"))?.trim() == "0" {
        return Ok(Vec::new());
    }
    if !on_path("sudo") {
        bail!("needs root, and there is no sudo");
    }
    if stdin().is_terminal() {
        return Ok(vec!["sudo"]);
    }
    output(tool("sudo").args(["-n", "true"])).context("needs root, and sudo wants a password")?;
    Ok(vec!["sudo", "-n"])
}
