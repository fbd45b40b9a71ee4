//! The environment's door. Deciding functions take a lookup, so that they can be tested without an environment.

/// A variable's value; an empty one counts as absent, one that is not UTF-8 too.
#[expect(clippy::disallowed_methods, reason = "the environment's only door")]
pub(super) fn read(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
