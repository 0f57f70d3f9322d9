//! A line on stderr for each request, when the last byte of its answer is written or nobody wants it any more.
use super::state::{AppState, InFlight};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode};
use hyper::body::{Frame, SizeHint};
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A request on its way. It is written when it is dropped.
pub struct Entry {
    on: bool,
    /// A probe, which comes every few seconds: it is of interest only if it is refused.
    probe: bool,
    peer: Option<SocketAddr>,
    line: String,
    id: String,
    start: Instant,
    status: Option<StatusCode>,
    bytes: u64,
    whole: bool,
}

impl Entry {
    /// A request that has just come.
    pub fn new(state: &AppState, peer: Option<SocketAddr>, request: &Request, id: &HeaderValue) -> Self {
        let on = state.limits().access_log;
        // The path alone: queries may hold what is nobody's business.
        let line = if on { format!("{} {}", request.method(), request.uri().path()) } else { String::new() };
        let probe = matches!(request.uri().path(), "/health" | "/metrics" | "/live");
        let id = if on { id.to_str().unwrap_or_default().to_owned() } else { String::new() };
        Entry { on, probe, peer, line, id, start: Instant::now(), status: None, bytes: 0, whole: false }
    }

    /// The answer begins.
    pub fn answered(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    fn text(&self, now: Duration) -> String {
        let peer = self.peer.map_or_else(|| "-".to_owned(), |peer| peer.ip().to_string());
        // 499 is nginx's for a client that has gone before there was an answer.
        let status = self.status.map_or(499, |status| status.as_u16());
        let cut = if self.whole { "" } else { " cut" };
        let (seconds, bytes) = (self.start.elapsed().as_secs_f64(), self.bytes);
        format!("{} {peer} \"{}\" {status}{cut} {bytes}B {seconds:.3}s {}\n", utc(now), self.line, self.id)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let dull = self.probe && self.status.is_some_and(|status| status.is_success());
        if self.on && !dull {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            // In one piece, so that lines of several threads do not mix.
            let _ = std::io::stderr().write_all(self.text(now).as_bytes());
        }
    }
}

/// `2026-01-31T23:59:59Z`.
fn utc(since_1970: Duration) -> String {
    let seconds = since_1970.as_secs();
    let (days, time) = ((seconds / 86_400) as i64, seconds % 86_400);
    // Days of years that begin in March, so that leap days come last.
    let shifted = days + 719_468;
    let (era, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

/// An answer's body that knows when it has ended.
pub struct Tracked {
    body: Body,
    entry: Entry,
    _guard: Option<InFlight>,
}

impl Tracked {
    /// `entry` and `guard` live as long as the body.
    pub fn new(body: Body, mut entry: Entry, guard: Option<InFlight>) -> Self {
        entry.whole = body.is_end_stream();
        Tracked { body, entry, _guard: guard }
    }
}

impl HttpBody for Tracked {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.entry.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
                self.entry.whole = self.body.is_end_stream();
            }
            Poll::Ready(None) => self.entry.whole = true,
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        // As `date -u -d @…` says.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (1_772_323_200, "2026-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), text);
        }
    }
}
