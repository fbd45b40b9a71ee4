//! A server whose clock is wrong: every time it tells of an object is shifted, in headers and in listings.

use hyper::header::{HeaderMap, HeaderValue, LAST_MODIFIED};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};

fn shifted(time: Timestamp, seconds: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_secs(seconds)).expect("a time of today")
}

/// The header of a HEAD or a GET.
pub(super) fn shift_header(headers: &mut HeaderMap, seconds: i64) {
    if seconds == 0 {
        return;
    }
    let Some(time) = headers.get(LAST_MODIFIED).and_then(|value| value.to_str().ok()) else { return };
    let time = rfc2822::parse(time).expect("the server writes HTTP dates").timestamp();
    let text = shifted(time, seconds).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    headers.insert(LAST_MODIFIED, HeaderValue::from_str(&text).expect("a date is ASCII"));
}

/// The document of a LIST.
pub(super) fn shift_page(page: &str, seconds: i64) -> String {
    let (open, close) = ("<LastModified>", "</LastModified>");
    let mut out = String::new();
    let mut rest = page;
    while let Some((before, after)) = rest.split_once(open) {
        let (time, after) = after.split_once(close).expect("the element is closed");
        let time: Timestamp = time.parse().expect("the server writes RFC 3339");
        out.push_str(&format!("{before}{open}{}{close}", shifted(time, seconds).strftime("%Y-%m-%dT%H:%M:%S%.3fZ")));
        rest = after;
    }
    out + rest
}
