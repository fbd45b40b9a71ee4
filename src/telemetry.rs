//! The clock's door and the log's beginning. Every other line of the crate takes `now` as an argument, so that what it
//! decides can be tested at any moment; whoever must ask the clock asks here.
//!
//! Log lines go to stderr: stdout belongs to people, to `--json` and to the worker's reports.

use tracing_subscriber::{EnvFilter, fmt::format::FmtSpan};

/// The wall clock, for what is shown to people and compared with times in the store. Durations are measured with
/// `tokio::time::Instant`, which no administrator can set back.
#[expect(clippy::disallowed_methods, reason = "the clock's only door")]
pub fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for machines.
    Json,
}

/// The filter when nobody asked for another: our news, and the warnings of the libraries.
pub const LOG_FILTER_DEFAULT: &str = "warn,tidemark=info";

/// Whether log lines have colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    Shown,
    /// In a Pod's log they would be control characters.
    None,
}

impl Colours {
    /// Colours are for eyes: only on a terminal, and not where the variable `NO_COLOR` says something.
    pub fn of(is_terminal: bool, no_color: Option<&str>) -> Self {
        match is_terminal && no_color.is_none_or(str::is_empty) {
            true => Colours::Shown,
            false => Colours::None,
        }
    }
}

/// Starts logging; a second call in the same process changes nothing (tests start several operators in one).
///
/// An unreadable filter is answered with the default one and a warning: a typing error must not stop a backup.
pub fn init(format: LogFormat, filter: Option<&str>, colours: Colours) {
    let (filter, refused) = match filter.map(EnvFilter::try_new) {
        None => (EnvFilter::new(LOG_FILTER_DEFAULT), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(LOG_FILTER_DEFAULT), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours == Colours::Shown)
        .with_span_events(FmtSpan::NONE);
    let begun = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let (Ok(()), Some(error)) = (begun, refused) {
        tracing::warn!(%error, default = LOG_FILTER_DEFAULT, "Log filter does not parse, the default is used");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_have_colours_only_on_a_terminal_whose_owner_wants_them() {
        assert_eq!(Colours::of(true, None), Colours::Shown);
        assert_eq!(Colours::of(true, Some("")), Colours::Shown);
        for (is_terminal, no_color) in [(true, Some("1")), (false, None), (false, Some("1"))] {
            assert_eq!(Colours::of(is_terminal, no_color), Colours::None, "{is_terminal} {no_color:?}");
        }
    }
}
