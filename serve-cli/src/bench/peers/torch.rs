//! PyTorch as a child process: both sides take turns over a pipe.
use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The other end.
const SCRIPT: &str = include_str!("../../../../benches/peers/torch_peers.py");

/// A running Python with PyTorch.
pub struct Torch {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Torch {
    /// Starts it and returns at once: the import takes seconds, which other parts use.
    pub fn start(python: &Path) -> Result<Self> {
        let mut child = Command::new(python)
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let requests = child.stdin.take().context("the child has no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("the child has no stdout")?);
        Ok(Torch { child, requests, answers })
    }

    /// Waits for the import. Returns the versions, such as "PyTorch 2.11.0+cu130, cuDNN 91900".
    pub fn greet(&mut self) -> Result<String> {
        let hello = self.answer()?;
        let version = hello["torch"].as_str().unwrap_or("?").to_owned();
        Ok(format!("PyTorch {version}, cuDNN {}", hello["cudnn"]))
    }

    /// Makes a case's data and graph.
    pub fn prepare(&mut self, case: &Value) -> Result<()> {
        self.ask(case).map(drop)
    }

    /// Times the prepared case for about `turn_us`: microseconds of one.
    pub fn time(&mut self, turn_us: f64) -> Result<f64> {
        let answer = self.ask(&json!({"turn_us": turn_us}))?;
        answer["us"].as_f64().with_context(|| format!("PyTorch answered {answer}"))
    }

    fn ask(&mut self, request: &Value) -> Result<Value> {
        writeln!(self.requests, "{request}").context("PyTorch's process has ended")?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(!line.is_empty(), "PyTorch's process has ended");
        let answer: Value = serde_json::from_str(&line).with_context(|| format!("PyTorch answered {line:?}"))?;
        match answer["error"].as_str() {
            Some(error) => Err(anyhow!("{error}")),
            None => Ok(answer),
        }
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_python_is_said() {
        let error = Torch::start(Path::new("no-such-python")).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("cannot start no-such-python"));
    }
}
