//! The three carriers of the report: an HTTP door, a line on stdout, and the last word in a file.
//!
//! All three carry the same line. Each emission takes the next sequence number together with the counters of that
//! moment, so a larger number never says less. What none of them carried is proven by the next attempt from the journal.

use std::{
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::watch,
    time::{Instant, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    http,
    model::{Phase, Report, ReportKey, limits, report::LOG_WORD},
};

/// How often the door's line is made anew.
const DOOR_INTERVAL: Duration = Duration::from_millis(500);

/// Where a worker's reports go.
pub struct Carriers {
    pub listener: Option<TcpListener>,
    /// `/dev/termination-log`, or a file of the process runner.
    pub last_word: Option<PathBuf>,
    pub key: ReportKey,
}

struct Reporter {
    reports: watch::Receiver<Report>,
    key: ReportKey,
    sequence: u64,
    door: watch::Sender<String>,
    last_word: Option<PathBuf>,
}

/// Carries reports until the one with an outcome was carried everywhere.
pub async fn carry(reports: watch::Receiver<Report>, carriers: Carriers) {
    let (door, newest) = watch::channel(String::new());
    let stop = CancellationToken::new();
    let served = carriers.listener.map(|listener| {
        let router = http::report_router(newest, carriers.key.clone());
        tokio::spawn(http::serve(listener, router, stop.clone()))
    });
    let mut reporter = Reporter { reports, key: carriers.key, sequence: 0, door, last_word: carriers.last_word };
    reporter.run().await;
    stop.cancel();
    if let Some(served) = served {
        // The door has nothing more to say; how it closes does not matter.
        let _ = tokio::time::timeout(Duration::from_secs(1), served).await;
    }
}

impl Reporter {
    async fn run(&mut self) {
        let mut tick = interval(DOOR_INTERVAL);
        let mut phase: Option<Phase> = None;
        let (mut logged, mut spoken) = (Instant::now(), None::<Instant>);
        loop {
            let report = self.reports.borrow_and_update().clone();
            let (is_final, is_new_phase) = (report.is_final(), phase != Some(report.phase));
            phase = Some(report.phase);
            let line = self.line(report);
            self.door.send_replace(line.clone());
            if is_new_phase || is_final || logged.elapsed() >= limits::REPORT_LOG_INTERVAL {
                print_line(&line);
                logged = Instant::now();
            }
            let is_due = spoken.is_none_or(|at| at.elapsed() >= limits::REPORT_LAST_WORD_INTERVAL);
            if is_new_phase || is_final || is_due {
                self.speak(&line);
                spoken = Some(Instant::now());
            }
            if is_final {
                return;
            }
            self.wait(&mut tick).await;
        }
    }

    /// Until the next tick, or at once when the phase changes or the attempt ends.
    async fn wait(&mut self, tick: &mut tokio::time::Interval) {
        let phase = self.reports.borrow().phase;
        tokio::select! {
            _ = tick.tick() => {}
            // A sender that is gone has sent its outcome before.
            _ = self.reports.wait_for(|report| report.phase != phase || report.is_final()) => {}
        }
    }

    fn line(&mut self, mut report: Report) -> String {
        self.sequence += 1;
        report.sequence = self.sequence;
        report.encode(&self.key)
    }

    fn speak(&self, line: &str) {
        if let Some(path) = &self.last_word
            && let Err(error) = overwrite(path, line)
        {
            tracing::warn!(path = %path.display(), %error, "Last word could not be written");
        }
    }
}

/// One `pwrite`, then the length: a reader sees the old line, the new one, or the new one with the end of the old, which
/// its key refuses.
fn overwrite(path: &Path, line: &str) -> std::io::Result<()> {
    let file = std::fs::File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(line.as_bytes(), 0)?;
    file.set_len(line.len() as u64)
}

fn print_line(line: &str) {
    let mut out = std::io::stdout().lock();
    // A stdout that nobody reads must not end a backup.
    let _ = writeln!(out, "{LOG_WORD} {line}").and_then(|()| out.flush());
}
