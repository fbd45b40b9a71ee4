//! How progress is shown: a bar where somebody watches, a line every few seconds elsewhere, JSON for programs.
//!
//! What is shown is what was counted, never an estimate of it; rate and time left are estimates and say so. Bars and
//! lines go to stderr, JSON to stdout.

use std::{
    collections::VecDeque,
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::{say, tell};
use crate::model::progress::{Completion, percent};

/// How often the bar is drawn anew.
pub(super) const TICK: Duration = Duration::from_millis(200);
/// Between two lines, if the phase does not change.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Between two JSON objects, if the phase does not change.
const JSON_INTERVAL: Duration = Duration::from_secs(1);
/// The rate is that of so long a time.
const RATE_WINDOW: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Output")]
pub(super) struct ShowOptions {
    /// Print one JSON object per line to stdout: progress each second, then the result
    #[arg(long)]
    pub json: bool,
    /// Show no progress
    #[arg(long, short, conflicts_with = "json")]
    pub quiet: bool,
}

/// One look at what is going on.
pub(super) struct Look<'a> {
    pub(super) phase: &'a str,
    /// What was done to the blocks that are counted.
    pub(super) verb: &'a str,
    pub(super) done_blocks: u64,
    pub(super) total_blocks: u64,
    pub(super) done_bytes: u64,
    /// Something else worth a word, or nothing.
    pub(super) note: String,
}

pub(super) struct Show {
    how: How,
    rate: Rate,
    phase: String,
    told: Option<Instant>,
}

enum How {
    Bar(ProgressBar),
    Lines,
    Json,
    Quiet,
}

impl Show {
    pub(super) fn new(options: ShowOptions) -> Self {
        let how = match (options.json, options.quiet) {
            (true, _) => How::Json,
            (_, true) => How::Quiet,
            _ if std::io::stderr().is_terminal() => How::Bar(bar()),
            _ => How::Lines,
        };
        Self { how, rate: Rate::default(), phase: String::new(), told: None }
    }

    /// Shows the newest look; `json` is its form for programs.
    pub(super) fn update(&mut self, look: &Look<'_>, json: impl FnOnce() -> Value) {
        let now = Instant::now();
        let is_new_phase = self.phase != look.phase;
        if is_new_phase {
            // Waiting for a lock says nothing about the speed of what follows.
            self.rate = Rate::default();
        }
        self.rate.add(now, look.done_blocks, look.done_bytes);
        look.phase.clone_into(&mut self.phase);
        let is_due = |interval| is_new_phase || self.told.is_none_or(|told| now - told >= interval);
        match &self.how {
            How::Bar(bar) => {
                bar.set_length(look.total_blocks.max(1));
                bar.set_position(look.done_blocks);
                bar.set_prefix(look.phase.to_owned());
                bar.set_message(self.rate.tail(look).trim_start().to_owned());
            }
            How::Lines if is_due(LINE_INTERVAL) => {
                self.told = Some(now);
                tell(&line(look, &self.rate));
            }
            How::Json if is_due(JSON_INTERVAL) => {
                self.told = Some(now);
                say(&json().to_string());
            }
            How::Lines | How::Json | How::Quiet => {}
        }
    }

    /// Takes the bar away, so that what follows has a line of its own.
    pub(super) fn end(&self) {
        if let How::Bar(bar) = &self.how {
            bar.finish_and_clear();
        }
    }

    /// The result: an object for programs; for people a summary on stderr and, if there is one, a word for scripts.
    pub(super) fn result(&self, summary: &str, word: Option<&str>, json: impl FnOnce() -> Value) {
        match &self.how {
            How::Json => say(&json().to_string()),
            How::Quiet => word.into_iter().for_each(say),
            How::Bar(_) | How::Lines => {
                tell(summary);
                word.into_iter().for_each(say);
            }
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
    let template = "{prefix:13} {wide_bar} {pos}/{len} blocks {msg}";
    bar.set_style(ProgressStyle::with_template(template).expect("a constant template").progress_chars("━╸─"));
    bar
}

fn line(look: &Look<'_>, rate: &Rate) -> String {
    if look.total_blocks == 0 {
        return format!("{}{}", look.phase, look.note);
    }
    let shown = percent(look.done_blocks, look.total_blocks, Completion::Open);
    let (done, total, verb) = (look.done_blocks, look.total_blocks, look.verb);
    format!("{}: {done} of {total} blocks {verb} ({shown} %){}", look.phase, rate.tail(look))
}

/// Bytes and blocks over the last seconds.
#[derive(Default)]
struct Rate {
    samples: VecDeque<(Instant, u64, u64)>,
}

impl Rate {
    fn add(&mut self, now: Instant, blocks: u64, bytes: u64) {
        self.samples.push_back((now, blocks, bytes));
        while self.samples.len() > 2 && now - self.samples[1].0 >= RATE_WINDOW {
            self.samples.pop_front();
        }
    }

    /// Bytes per second and the time left, once there is something to divide.
    fn estimate(&self, total_blocks: u64) -> Option<(f64, Option<Duration>)> {
        let ((first, blocks_then, bytes_then), (last, blocks, bytes)) = (*self.samples.front()?, *self.samples.back()?);
        let seconds = (last - first).as_secs_f64();
        if seconds < 1.0 {
            return None;
        }
        let blocks_per_second = blocks.saturating_sub(blocks_then) as f64 / seconds;
        let left = total_blocks.saturating_sub(blocks) as f64 / blocks_per_second;
        // Nothing moved: the end is not known.
        let left = (left.is_finite() && left < 1e8).then(|| Duration::from_secs_f64(left));
        Some((bytes.saturating_sub(bytes_then) as f64 / seconds, left))
    }

    fn tail(&self, look: &Look<'_>) -> String {
        let Some((bytes_per_second, left)) = self.estimate(look.total_blocks) else { return look.note.clone() };
        let left = match left {
            Some(left) if look.done_blocks < look.total_blocks => format!(", about {} left", HumanDuration(left)),
            _ => String::new(),
        };
        format!(" {}/s{left}{}", HumanBytes(bytes_per_second as u64), look.note)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(done: u64, total: u64) -> Look<'static> {
        Look {
            phase: "Uploading",
            verb: "acknowledged",
            done_blocks: done,
            total_blocks: total,
            done_bytes: 0,
            note: String::new(),
        }
    }

    #[test]
    fn rate_and_time_left_are_those_of_the_last_seconds() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.add(start, 0, 0);
        assert_eq!(rate.estimate(100), None, "nothing to divide");
        for second in 1..=60 {
            // Slow for half a minute, then ten blocks a second.
            let blocks = if second <= 30 { 0 } else { (second - 30) * 10 };
            rate.add(start + Duration::from_secs(second), blocks, blocks * 1000);
        }
        assert_eq!(rate.estimate(400), Some((10_000.0, Some(Duration::from_secs(10)))));
        assert!(rate.samples.len() <= 12, "{} samples are kept", rate.samples.len());
    }

    #[test]
    fn a_rate_of_nothing_promises_no_end() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        rate.add(start, 5, 5);
        rate.add(start + Duration::from_secs(3), 5, 5);
        assert_eq!(rate.estimate(100), Some((0.0, None)));
        assert_eq!(line(&look(5, 100), &rate), "Uploading: 5 of 100 blocks acknowledged (5 %) 0 B/s");
    }

    #[test]
    fn law_3_a_line_never_says_100_percent_of_what_is_open() {
        assert_eq!(line(&look(7, 7), &Rate::default()), "Uploading: 7 of 7 blocks acknowledged (99 %)");
        assert_eq!(line(&look(0, 0), &Rate::default()), "Uploading");
    }
}
