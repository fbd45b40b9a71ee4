//! Who may start: limits per operator, target and namespace, one worker for what only one may work on, and fair turns.
//! Backups and Restores share the slots: a slot is a worker.
//!
//! [`admit`] is a pure function over the set: given who runs and who waits, it says who starts and which limit holds the
//! others. Turns go to the namespace with the fewest running workers, and among equals to a Restore before a Backup, then
//! to the one that waits longest; so too within a namespace. A namespace cannot starve another by asking often, and none starves, for waiting only makes
//! one older.
//!
//! [`Queue`] is the leader's memory of that set. It begins from what status says and is the only place where slots are
//! given, so a stale cache cannot give one twice. Those who ask wait a moment ([`GATHERING`]) before the first turn, so
//! that of a hundred created at once the oldest goes first and not the first to be looked at. A turn looks at all who wait,
//! so it is taken when a worker ends, and else at most once in that moment, however many come, change or go meanwhile.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use tokio::time::Instant;

/// What an object that wants to run, or runs, takes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub uid: String,
    pub namespace: String,
    /// Name of the target.
    pub target: String,
    pub urgency: Urgency,
    /// What only one worker may work on: a Backup's volume in its target, a Restore's device or claim.
    pub holds: String,
    /// Waiting since.
    pub since: Timestamp,
    pub target_limits: TargetLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetLimits {
    pub total: usize,
    pub per_namespace: usize,
}

/// Two Backups of one volume to one target wait for each other.
pub fn volume_held(target: &str, volume: &str) -> String {
    format!("volume {target}/{volume}")
}

/// Two Restores to one device wait for each other, wherever they read from.
pub fn device_held(node: &str, path: &str) -> String {
    format!("device {node}:{path}")
}

/// And two to one claim.
pub fn claim_held(namespace: &str, claim: &str) -> String {
    format!("claim {namespace}/{claim}")
}

/// Somebody waits for a Restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    Restore,
    Backup,
}

/// What a waiting one waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limit {
    Operator,
    Target,
    Namespace,
    /// Another works on the same volume.
    Volume,
}

/// A word on each waiting entry: `None` may start.
pub type Verdicts = HashMap<String, Option<Limit>>;

/// Gives turns until no waiting entry fits any more.
pub fn admit(running: &[Entry], waiting: &[Entry], operator_limit: usize) -> Verdicts {
    let mut taken = Taken::default();
    running.iter().for_each(|entry| taken.add(entry));
    let mut lines: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for entry in waiting {
        lines.entry(&entry.namespace).or_default().push(entry);
    }
    // Oldest last, so that it can be popped.
    lines.values_mut().for_each(|line| line.sort_by(|a, b| b.turn().cmp(&a.turn())));
    let mut verdicts = Verdicts::new();
    while let Some(namespace) = next_line(&lines, &taken) {
        let Some(entry) = lines.get_mut(namespace).and_then(Vec::pop) else { continue };
        let limit = taken.limit(entry, operator_limit);
        if limit.is_none() {
            taken.add(entry);
        }
        verdicts.insert(entry.uid.clone(), limit);
    }
    verdicts
}

/// The namespace whose turn it is.
fn next_line<'a>(lines: &BTreeMap<&'a str, Vec<&Entry>>, taken: &Taken) -> Option<&'a str> {
    let waiting = lines.iter().filter_map(|(namespace, line)| Some((*namespace, *line.last()?)));
    waiting
        .min_by_key(|(namespace, oldest)| {
            (taken.by_namespace.get(*namespace).copied().unwrap_or(0), oldest.urgency, oldest.since)
        })
        .map(|(namespace, _)| namespace)
}

impl Entry {
    fn is_same_but_for_its_turn(&self, other: &Self) -> bool {
        *self == Self { since: self.since, ..other.clone() }
    }

    /// Whose turn comes first has the least of this.
    fn turn(&self) -> (Urgency, Timestamp, &str) {
        (self.urgency, self.since, &self.uid)
    }
}

/// What the running ones take up.
#[derive(Default)]
struct Taken {
    total: usize,
    by_namespace: HashMap<String, usize>,
    by_target: HashMap<String, usize>,
    by_target_and_namespace: HashMap<(String, String), usize>,
    held: HashSet<String>,
}

impl Taken {
    fn add(&mut self, entry: &Entry) {
        self.total += 1;
        *self.by_namespace.entry(entry.namespace.clone()).or_default() += 1;
        *self.by_target.entry(entry.target.clone()).or_default() += 1;
        *self.by_target_and_namespace.entry((entry.target.clone(), entry.namespace.clone())).or_default() += 1;
        self.held.insert(entry.holds.clone());
    }

    fn limit(&self, entry: &Entry, operator_limit: usize) -> Option<Limit> {
        let of_target = self.by_target.get(&entry.target).copied().unwrap_or(0);
        let pair = (entry.target.clone(), entry.namespace.clone());
        let of_namespace = self.by_target_and_namespace.get(&pair).copied().unwrap_or(0);
        if self.held.contains(&entry.holds) {
            Some(Limit::Volume)
        } else if self.total >= operator_limit {
            Some(Limit::Operator)
        } else if of_target >= entry.target_limits.total {
            Some(Limit::Target)
        } else if of_namespace >= entry.target_limits.per_namespace {
            Some(Limit::Namespace)
        } else {
            None
        }
    }
}

/// How an object stands in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// It did not ask yet, or the first turn is not over.
    Gathering,
    Waiting(Limit),
    Held,
}

/// How long a first turn waits for others.
pub const GATHERING: Duration = Duration::from_millis(200);

/// The leader's memory of who runs and who waits.
pub struct Queue {
    operator_limit: usize,
    running: HashMap<String, Entry>,
    waiting: HashMap<String, (Entry, Instant)>,
    last: Option<Turn>,
}

/// The last turn. Its verdicts stay safe while those that wait come, change or go: whom it admitted counts as running for
/// all others. They are only not the fairest any more.
struct Turn {
    verdicts: Verdicts,
    at: Instant,
    is_fair: bool,
}

impl Queue {
    pub fn new(operator_limit: usize, running: impl IntoIterator<Item = Entry>) -> Self {
        let running = running.into_iter().map(|entry| (entry.uid.clone(), entry)).collect();
        Self { operator_limit, running, waiting: HashMap::new(), last: None }
    }

    /// Begins again with those that run: a new leader reads them from status.
    pub fn begin(&mut self, running: impl IntoIterator<Item = Entry>) {
        *self = Self::new(self.operator_limit, running);
    }

    /// Looks without asking.
    pub fn slot(&self, uid: &str) -> Slot {
        if self.running.contains_key(uid) {
            return Slot::Held;
        }
        match self.last.as_ref().and_then(|turn| turn.verdicts.get(uid)) {
            Some(Some(limit)) => Slot::Waiting(*limit),
            Some(None) | None => Slot::Gathering,
        }
    }

    /// Asks for a slot; asking again only brings what is known about the entry up to date.
    pub fn ask(&mut self, entry: Entry, now: Instant) -> Slot {
        let uid = entry.uid.clone();
        if self.running.contains_key(&uid) {
            return Slot::Held;
        }
        let asked = match self.waiting.get(&uid) {
            Some((known, asked)) if *known == entry => *asked,
            Some((known, asked)) => {
                let asked = *asked;
                if !known.is_same_but_for_its_turn(&entry) {
                    self.forget_verdict(&uid);
                }
                self.unfair();
                asked
            }
            None => {
                self.unfair();
                now
            }
        };
        self.waiting.insert(uid.clone(), (entry, asked));
        if now.saturating_duration_since(asked) < GATHERING {
            return Slot::Gathering;
        }
        let is_due = |turn: &Turn| turn.is_fair || now.saturating_duration_since(turn.at) < GATHERING;
        if !self.last.as_ref().is_some_and(is_due) {
            self.take_turn(now);
        }
        let is_next = self.last.as_ref().and_then(|turn| turn.verdicts.get(&uid).copied());
        match is_next {
            Some(None) => {
                // The others' verdicts were made with this one running: they stay true.
                if let Some((entry, _)) = self.waiting.remove(&uid) {
                    self.running.insert(uid, entry);
                }
                Slot::Held
            }
            Some(Some(limit)) => Slot::Waiting(limit),
            None => Slot::Gathering,
        }
    }

    /// Gives the slot or the place back. Returns those whose turn it may be now.
    pub fn leave(&mut self, uid: &str, now: Instant) -> Vec<String> {
        let ran = self.running.remove(uid).is_some();
        let waited = self.waiting.remove(uid).is_some();
        let was_admitted = self.last.as_ref().is_some_and(|turn| turn.verdicts.get(uid) == Some(&None));
        self.forget_verdict(uid);
        if !ran && !was_admitted {
            // Whoever only waited took nothing from the others.
            if waited {
                self.unfair();
            }
            return Vec::new();
        }
        let verdicts = self.take_turn(now);
        verdicts.iter().filter(|(_, limit)| limit.is_none()).map(|(uid, _)| uid.clone()).collect()
    }

    fn take_turn(&mut self, now: Instant) -> &Verdicts {
        let running: Vec<_> = self.running.values().cloned().collect();
        let waiting: Vec<_> = self.waiting.values().map(|(entry, _)| entry.clone()).collect();
        let verdicts = admit(&running, &waiting, self.operator_limit);
        &self.last.insert(Turn { verdicts, at: now, is_fair: true }).verdicts
    }

    fn unfair(&mut self) {
        if let Some(turn) = &mut self.last {
            turn.is_fair = false;
        }
    }

    /// What was said of it holds for what it was.
    fn forget_verdict(&mut self, uid: &str) {
        if let Some(turn) = &mut self.last {
            turn.verdicts.remove(uid);
        }
    }

    /// Forgets every entry whose object is no more.
    pub fn retain(&mut self, lives: &HashSet<String>, now: Instant) -> Vec<String> {
        let gone: Vec<String> =
            self.running.keys().chain(self.waiting.keys()).filter(|uid| !lives.contains(*uid)).cloned().collect();
        gone.iter().flat_map(|uid| self.leave(uid, now)).collect()
    }

    pub fn running(&self) -> usize {
        self.running.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: &str, namespace: &str, target: &str, volume: &str, since: i64) -> Entry {
        Entry {
            uid: uid.into(),
            namespace: namespace.into(),
            target: target.into(),
            urgency: Urgency::Backup,
            holds: volume_held(target, volume),
            since: Timestamp::from_second(since).expect("in range"),
            target_limits: TargetLimits { total: 2, per_namespace: 2 },
        }
    }

    fn admitted(verdicts: &Verdicts) -> Vec<&str> {
        let mut uids: Vec<_> = verdicts.iter().filter(|(_, l)| l.is_none()).map(|(u, _)| u.as_str()).collect();
        uids.sort_unstable();
        uids
    }

    /// All worlds of up to four Backups over two namespaces, two targets and two volumes, each running or waiting.
    #[test]
    fn law_9_no_limit_is_ever_exceeded_and_no_slot_stays_empty() {
        let kinds: Vec<_> = (0..8_u8).map(|k| (k & 1, k >> 1 & 1, k >> 2 & 1)).collect();
        let mut worlds = 0;
        for code in 0..8_usize.pow(4) {
            for runs in 0..16_u8 {
                let all: Vec<_> = (0..4)
                    .map(|i| {
                        let (n, t, v) = kinds[code / 8_usize.pow(i) % 8];
                        entry(&format!("u{i}"), &format!("n{n}"), &format!("t{t}"), &format!("v{v}"), i64::from(i))
                    })
                    .collect();
                let is_running = |i: usize| runs >> i & 1 == 1;
                let pick = |wanted| (0..4).filter(move |i| is_running(*i) == wanted);
                let running: Vec<_> = pick(true).map(|i| all[i].clone()).collect();
                let waiting: Vec<_> = pick(false).map(|i| all[i].clone()).collect();
                let before = Taken::of(&running);
                let verdicts = admit(&running, &waiting, 3);
                let mut after: Vec<_> = running.clone();
                after.extend(waiting.iter().filter(|w| verdicts[&w.uid].is_none()).cloned());
                let world = format!("running {running:?}\nwaiting {waiting:?}\nverdicts {verdicts:?}");
                let taken = Taken::of(&after);
                assert!(taken.total <= 3.max(before.total), "{world}");
                assert!(
                    taken.by_target.iter().all(|(t, n)| *n <= 2.max(before.by_target.get(t).copied().unwrap_or(0))),
                    "{world}"
                );
                assert_eq!(taken.held.len() - before.held.len(), after.len() - running.len(), "{world}");
                for refused in waiting.iter().filter(|w| verdicts[&w.uid].is_some()) {
                    assert!(taken.limit(refused, 3).is_some(), "a slot stays empty for {}\n{world}", refused.uid);
                }
                worlds += 1;
            }
        }
        assert_eq!(worlds, 65_536);
    }

    impl Taken {
        fn of(entries: &[Entry]) -> Self {
            let mut taken = Taken::default();
            entries.iter().for_each(|e| taken.add(e));
            taken
        }
    }

    #[test]
    fn turns_go_round_the_namespaces_and_to_the_oldest_in_each() {
        // A hundred of one namespace came first; one of another came last.
        let mut waiting: Vec<_> = (0..100).map(|i| entry(&format!("a{i:03}"), "a", "t", &format!("v{i}"), i)).collect();
        waiting.push(entry("b", "b", "t", "vb", 1000));
        assert_eq!(admitted(&admit(&[], &waiting, 20)), ["a000", "b"]);
        let verdicts = admit(&[], &waiting, 20);
        assert_eq!(verdicts["a001"], Some(Limit::Target));
    }

    #[test]
    fn a_restore_goes_before_backups_that_are_older_but_shares_their_slots() {
        let mut waiting: Vec<_> = (0..3).map(|i| entry(&format!("b{i}"), "n", "t", &format!("v{i}"), i)).collect();
        waiting.push(Entry { urgency: Urgency::Restore, ..entry("r", "n", "t", "device", 100) });
        let verdicts = admit(&[], &waiting, 20);
        assert_eq!(admitted(&verdicts), ["b0", "r"], "two slots of the namespace");
        let running = [Entry { urgency: Urgency::Restore, ..entry("r1", "m", "t", "device", 0) }];
        assert_eq!(admit(&running, &waiting, 20)["r"], Some(Limit::Volume), "one device, one worker");
    }

    #[test]
    fn nobody_starves_however_often_others_ask() {
        let mut running = [entry("a0", "a", "t", "v0", 0)];
        let mut waiting = vec![entry("b", "b", "t", "vb", 5)];
        running[0].target_limits.total = 1;
        waiting[0].target_limits.total = 1;
        for round in 1..50 {
            let mut next = entry(&format!("a{round}"), "a", "t", &format!("v{round}"), 5 + round);
            next.target_limits.total = 1;
            waiting.push(next);
            let verdicts = admit(&[], &waiting, 20);
            assert_eq!(admitted(&verdicts), ["b"], "round {round}: b is older than any a that still waits");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_given_once_and_given_back_to_the_next() {
        let mut queue = Queue::new(1, []);
        let (a, b) = (entry("a", "n", "t", "va", 1), entry("b", "n", "t", "vb", 0));
        assert_eq!(queue.ask(a.clone(), Instant::now()), Slot::Gathering);
        assert_eq!(queue.ask(b.clone(), Instant::now()), Slot::Gathering);
        tokio::time::advance(GATHERING).await;
        assert_eq!(queue.ask(a.clone(), Instant::now()), Slot::Waiting(Limit::Operator), "b is older");
        assert_eq!(queue.ask(b.clone(), Instant::now()), Slot::Held);
        assert_eq!(queue.ask(a.clone(), Instant::now()), Slot::Waiting(Limit::Operator));
        assert_eq!(queue.leave("b", Instant::now()), ["a"]);
        assert_eq!(queue.ask(a, Instant::now()), Slot::Held);
        assert_eq!(queue.slot("a"), Slot::Held);
        assert!(queue.retain(&HashSet::new(), Instant::now()).is_empty());
        assert_eq!(queue.running(), 0);
    }

    /// A turn looks at all who wait: were it taken at every question, ten times as many would cost a hundred times as much.
    #[tokio::test(start_paused = true)]
    async fn law_9_five_thousand_that_wait_are_looked_at_a_few_times_and_not_once_for_each() {
        let since = |n: i64| entry(&format!("u{n:04}"), &format!("n{}", n % 50), "t", &format!("v{n}"), n);
        let mut queue = Queue::new(1, []);
        let mut turns = HashSet::new();
        let mut ask = |queue: &mut Queue, entry: Entry| {
            let slot = queue.ask(entry, Instant::now());
            turns.extend(queue.last.as_ref().map(|turn| turn.at));
            (slot, turns.len())
        };
        for round in 0..3 {
            // Each time their place in the line is another, as when status was written.
            for n in 0..5000 {
                ask(&mut queue, since(n + round));
            }
            tokio::time::advance(GATHERING).await;
        }
        let (_, taken) = ask(&mut queue, since(0));
        assert!(taken <= 3, "{taken} turns");
        // Those that go while they wait cost nothing; one that ran makes room at once.
        let before = queue.last.as_ref().map(|turn| turn.at);
        let ran = queue.running.keys().next().cloned().expect("one of them got the slot");
        let gone: Vec<String> = queue.waiting.keys().take(1000).cloned().collect();
        tokio::time::advance(Duration::from_millis(1)).await;
        for uid in &gone {
            assert!(queue.leave(uid, Instant::now()).is_empty());
        }
        assert_eq!(queue.last.as_ref().map(|turn| turn.at), before);
        assert_eq!(queue.leave(&ran, Instant::now()).len(), 1);
    }

    /// What was said of an entry is not said of another volume.
    #[tokio::test(start_paused = true)]
    async fn a_verdict_holds_only_for_what_was_asked() {
        let mut queue = Queue::new(5, []);
        for (uid, volume) in [("a", "v"), ("b", "w")] {
            queue.ask(entry(uid, "n", "t", volume, 1), Instant::now());
        }
        tokio::time::advance(GATHERING).await;
        assert_eq!(queue.ask(entry("a", "n", "t", "v", 1), Instant::now()), Slot::Held);
        // It was admitted to volume w, and now it wants v, where a runs.
        let moved = entry("b", "n", "t", "v", 1);
        assert_ne!(queue.ask(moved.clone(), Instant::now()), Slot::Held);
        tokio::time::advance(GATHERING).await;
        assert_eq!(queue.ask(moved, Instant::now()), Slot::Waiting(Limit::Volume));
    }
}
