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

/// Starts logging; a second call in the same process changes nothing (tests start several operators in one).
///
/// An unreadable filter is answered with the default one and a warning: a typing error must not stop a backup.
pub fn init(format: LogFormat, filter: Option<&str>) {
    let (filter, refused) = match filter.map(EnvFilter::try_new) {
        None => (EnvFilter::new(LOG_FILTER_DEFAULT), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(LOG_FILTER_DEFAULT), Some(error)),
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_span_events(FmtSpan::NONE);
    let begun = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let (Ok(()), Some(error)) = (begun, refused) {
        tracing::warn!(%error, default = LOG_FILTER_DEFAULT, "Log filter does not parse, the default is used");
    }
}
