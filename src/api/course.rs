//! What the status of every kind that is worked on by attempts says of its course: where it is and why, the attempts,
//! the last failure, what follows by itself. The fields are declared once, here, and so are their words in the CRDs;
//! a kind adds its own fields and the rules that hold laws 3 and 8.
//!
//! [`Course`] is those fields as one value: whoever decides what comes next reads it and writes it without knowing the
//! kind.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::common::count;
use crate::model::{Failure, Requests, Retry};

/// Where the work is, whatever a kind calls it.
///
/// ```text
/// Pending → Starting → InProgress → Closing → Completed
///    └─────────┴───────────┴───────────┴→ Error (→ back by a retry) or Cancelled; any → Deleting
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    Pending,
    Starting,
    InProgress,
    Closing,
    Completed,
    Error,
    Cancelled,
    Deleting,
}

/// A kind's own words for the stages.
pub trait State: Copy {
    fn stage(self) -> Stage;

    /// Absent: the kind has no word for it, and its state stays as it was.
    fn of(stage: Stage) -> Option<Self>;
}

/// The course of the work, as status tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Course {
    pub observed_generation: i64,
    pub observed_retry_request: Option<String>,
    pub state: Option<Stage>,
    pub reason: Option<String>,
    pub start_time: Option<Time>,
    pub completion_time: Option<Time>,
    pub queue: Option<Queue>,
    pub attempt: Option<Attempt>,
    pub requests: Option<RequestCounts>,
    pub failure: Option<ObservedFailure>,
    pub consecutive_failures: Option<i32>,
    pub next_retry_time: Option<Time>,
    pub conditions: Vec<Condition>,
}

/// The status of a kind that has a course.
pub trait Status:
    Clone + Default + PartialEq + std::fmt::Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
    fn course(&self) -> Course;

    fn set_course(&mut self, course: Course);

    /// Blocks that count in this attempt.
    fn done_blocks(&self) -> i64;

    /// Blocks that this attempt moved itself.
    fn moved_blocks(&self) -> i64;

    /// The percentage that is shown, if any is.
    fn percent(&self) -> Option<i32>;

    /// What moves by itself, such as rates, is set to rest.
    fn rest_gauges(&mut self);

    /// As if nothing had been counted.
    fn clear_progress(&mut self);
}

/// Declares a status: the fields of the course, and the kind's own.
macro_rules! status_with_course {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(#[$state_doc:meta])*
            state: $state:ty,
            $(#[$conditions_doc:meta])*
            conditions,
            $($(#[$own_meta:meta])* pub $own:ident: $own_type:ty,)*
        }
    ) => {
        $(#[$meta])*
        pub struct $name {
            /// The generation of the spec this status is about; -1: not looked at yet.
            #[serde(default = "crate::api::course::unobserved")]
            pub observed_generation: i64,
            /// The last spec.retryRequest that was acted on.
            #[serde(skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 128))]
            pub observed_retry_request: Option<String>,
            $(#[$state_doc])*
            #[serde(skip_serializing_if = "Option::is_none")]
            pub state: Option<$state>,
            /// Why it is in this state: the reason of the condition Ready.
            #[serde(skip_serializing_if = "Option::is_none")]
            #[schemars(length(max = 64))]
            pub reason: Option<String>,
            /// When work on it began.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub start_time: Option<Time>,
            /// When it was completed.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub completion_time: Option<Time>,
            /// Present only while it waits for a slot; written once.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub queue: Option<Queue>,
            /// The current attempt, or the last one.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub attempt: Option<Attempt>,
            /// Requests to the store in this attempt, by kind.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub requests: Option<RequestCounts>,
            /// The last failure; it stays when a later attempt gets on.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub failure: Option<ObservedFailure>,
            /// Attempts in a row that failed without getting one block further.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub consecutive_failures: Option<i32>,
            /// When the next attempt starts by itself.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub next_retry_time: Option<Time>,
            $(#[$conditions_doc])*
            #[serde(default, skip_serializing_if = "Vec::is_empty")]
            #[schemars(length(max = 16))]
            #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
            pub conditions: Vec<Condition>,
            $($(#[$own_meta])* pub $own: $own_type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    observed_generation: crate::api::course::unobserved(),
                    observed_retry_request: None,
                    state: None,
                    reason: None,
                    start_time: None,
                    completion_time: None,
                    queue: None,
                    attempt: None,
                    requests: None,
                    failure: None,
                    consecutive_failures: None,
                    next_retry_time: None,
                    conditions: Vec::new(),
                    $($own: Default::default(),)*
                }
            }
        }

        impl $name {
            fn read_course(&self) -> Course {
                let status = self.clone();
                Course {
                    observed_generation: status.observed_generation,
                    observed_retry_request: status.observed_retry_request,
                    state: status.state.map(State::stage),
                    reason: status.reason,
                    start_time: status.start_time,
                    completion_time: status.completion_time,
                    queue: status.queue,
                    attempt: status.attempt,
                    requests: status.requests,
                    failure: status.failure,
                    consecutive_failures: status.consecutive_failures,
                    next_retry_time: status.next_retry_time,
                    conditions: status.conditions,
                }
            }

            fn write_course(&mut self, course: Course) {
                self.observed_generation = course.observed_generation;
                self.observed_retry_request = course.observed_retry_request;
                self.state = course.state.and_then(<$state>::of).or(self.state);
                self.reason = course.reason;
                self.start_time = course.start_time;
                self.completion_time = course.completion_time;
                self.queue = course.queue;
                self.attempt = course.attempt;
                self.requests = course.requests;
                self.failure = course.failure;
                self.consecutive_failures = course.consecutive_failures;
                self.next_retry_time = course.next_retry_time;
                self.conditions = course.conditions;
            }
        }
    };
}
pub(super) use status_with_course;

/// kstatus: an object whose status says -1 was not looked at yet.
pub(super) fn unobserved() -> i64 {
    -1
}

/// Present only while it waits for a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// Since when.
    pub since: Time,
    /// Which limit it waits for: Target, Namespace, Node, Operator, Driver or Volume.
    pub limit: QueueLimit,
}

/// The limit a queued backup waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum QueueLimit {
    Target,
    Namespace,
    Node,
    Operator,
    Driver,
    Volume,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Counts from 1 and never falls.
    #[schemars(range(min = 1))]
    pub number: i32,
    /// Its id: a ULID.
    #[schemars(length(max = 26))]
    pub id: String,
    /// Name of the worker's Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod_name: Option<String>,
    /// Uid of the worker's Pod: reports of any other are not believed.
    #[serde(rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub pod_uid: Option<String>,
    /// The node it runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// When it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the worker was last heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heard_time: Option<Time>,
    /// What carried the last report: HTTP, Log or LastWord.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_by: Option<HeardBy>,
}

/// What carried a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum HeardBy {
    #[serde(rename = "HTTP")]
    Http,
    Log,
    LastWord,
}

/// Requests to the store in this attempt, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestCounts {
    /// PUT requests, of blocks and of everything else.
    pub put: i64,
    /// HEAD requests.
    pub head: i64,
    /// GET requests.
    pub get: i64,
    /// LIST requests.
    pub list: i64,
    /// DELETE requests.
    pub delete: i64,
    /// Requests of any kind that were a repetition.
    pub retried: i64,
    /// Answers that asked us to slow down.
    pub throttled: i64,
}

/// One failure.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObservedFailure {
    /// Why, in one word.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What was tried, on which object, and what was seen.
    #[schemars(length(max = 1100))]
    pub message: String,
    /// The key or path at which it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub object: Option<String>,
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// In which attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<i32>,
    /// True: another attempt may cure it.
    #[serde(default)]
    pub retryable: bool,
}

impl From<&Requests> for RequestCounts {
    fn from(requests: &Requests) -> Self {
        Self {
            put: count(requests.put),
            head: count(requests.head),
            get: count(requests.get),
            list: count(requests.list),
            delete: count(requests.delete),
            retried: count(requests.retried),
            throttled: count(requests.throttled),
        }
    }
}

impl ObservedFailure {
    /// What status says of a failure in that attempt (absent: before any).
    pub fn of(failure: &Failure, attempt: Option<u32>) -> Self {
        Self {
            reason: failure.reason.as_str().to_owned(),
            message: failure.message.clone(),
            object: failure.object.clone(),
            time: Some(Time(failure.time)),
            attempt: attempt.map(|number| i32::try_from(number).unwrap_or(i32::MAX)),
            retryable: failure.reason.retry() != Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_beyond_int64_does_not_become_negative() {
        let huge = Requests { put: u64::MAX, ..Requests::default() };
        assert_eq!(RequestCounts::from(&huge).put, i64::MAX);
    }
}
