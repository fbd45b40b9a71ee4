//! The caches are fed from watches, and what changes is reconciled.
//!
//! Our own status writes must not wake us: only generation and finalizers do, and deleting raises the generation. Before
//! every cache was filled once nothing is reconciled, for "not there" would mean nothing; and before the first reconcile
//! the queue learns who runs. Until then changes are not announced, for nobody listens and a full channel would keep the
//! caches from filling: the first to be looked at are all that the caches hold.

use std::{
    convert::Infallible,
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use futures::{Stream, StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        Config as ControllerConfig, Predicate, WatchStreamExt, applier,
        controller::ReconcileRequest,
        predicates,
        reflector::{self, Lookup, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    backup,
    census::{census, settled},
    context::Context,
    error_chain,
    objects::Objects,
    populate::populate,
    restore,
    target::{self, Targets},
    work::{self, Kind},
};
use crate::api::{Backup, ClusterBackupTarget, Restore};

/// Reconciles at once, per kind: each is a few requests to the API server.
const CONCURRENT_RECONCILES: u16 = 32;
/// Of the Secrets beside us targets' keys are kept, not what Helm keeps of its releases (up to a megabyte each), nor what
/// each worker is given.
const NO_RELEASES: &str = "type!=helm.sh/release.v1";
const NO_WORKERS: &str = "!tidemark.dev/attempt";
/// Objects that wait to be looked at; more are looked at when their own time comes.
pub const WAITING_MAX: usize = 1024;

/// What feeds the objects of one kind, and who was asked for.
pub struct Feed<K: Resource<DynamicType = ()> + Clone + 'static> {
    writer: Writer<K>,
    woken: mpsc::Receiver<ObjectRef<K>>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Feed<K> {
    pub fn new() -> (Objects<K>, Self) {
        let (wake, woken) = mpsc::channel(WAITING_MAX);
        let (cache, writer) = reflector::store();
        (Objects::new(cache, wake), Self { writer, woken })
    }
}

/// The ends of the caches that are fed.
pub struct Watches {
    pub backup_feed: Feed<Backup>,
    pub restore_feed: Feed<Restore>,
    pub target_writer: Writer<ClusterBackupTarget>,
    pub secret_writer: Writer<Secret>,
    pub poked_targets: mpsc::Receiver<ObjectRef<ClusterBackupTarget>>,
}

/// Feeds the caches, and once they are full, reconciles what changes.
pub async fn act(context: Arc<Context>, watches: Watches, stop: &CancellationToken) {
    let Watches { backup_feed, restore_feed, target_writer, secret_writer, poked_targets } = watches;
    let client = || context.client.clone();
    let listening = Arc::new(AtomicBool::new(false));
    let (again_backup, backup_changes) = announcing(&listening);
    let (again_restore, restore_changes) = announcing(&listening);
    let (again_target, target_changes) = announcing(&listening);
    let targets_only = watcher::Config::default().fields(NO_RELEASES).labels(NO_WORKERS);
    let secret_watch = watcher(Api::<Secret>::namespaced(client(), &context.namespace), targets_only)
        .default_backoff()
        .modify(lighten)
        .reflect(secret_writer)
        .touched_objects()
        .for_each(async |touched| match touched {
            Ok(secret) => touch_targets(&context, &secret, &again_target).await,
            Err(error) => tracing::warn!(error = %error_chain(&error), "Secrets are not watched, trying again"),
        });
    let feeding = future::join4(
        watched(Api::<Backup>::all(client()), backup_feed.writer, again_backup),
        watched(Api::<Restore>::all(client()), restore_feed.writer, again_restore),
        watched(Api::<ClusterBackupTarget>::all(client()), target_writer, again_target.clone()),
        secret_watch,
    );
    let working = async {
        caches_filled(&context).await;
        let backups = context.backups.state();
        let restores = context.restores.state();
        let running = backups.iter().filter_map(|b| backup::running(b));
        context.queue().begin(running.chain(restores.iter().filter_map(|r| restore::running(r))));
        let settled = settled(&context).await;
        context.memory().settled = settled;
        // What changes from here on is announced; what changed before is in the caches.
        listening.store(true, SeqCst);
        let of_backups = wanted(context.backups.state(), backup_changes, backup_feed.woken);
        let of_restores = wanted(context.restores.state(), restore_changes, restore_feed.woken);
        let of_targets = wanted(context.targets.state(), target_changes, poked_targets);
        future::join5(
            reconcile_kind(&context, of_backups, stop),
            reconcile_kind(&context, of_restores, stop),
            reconcile_targets(&context, of_targets, stop),
            future::join(census(&context, stop), populate(&context, stop)),
            context.errands.run(stop),
        )
        .await
    };
    tokio::select! {
        _ = feeding => {}
        _ = working => {}
    }
}

/// Names what changed, once somebody listens.
#[derive(Clone)]
struct Announce<K: Resource<DynamicType = ()>> {
    again: mpsc::Sender<ObjectRef<K>>,
    listening: Arc<AtomicBool>,
}

fn announcing<K>(listening: &Arc<AtomicBool>) -> (Announce<K>, mpsc::Receiver<ObjectRef<K>>)
where
    K: Resource<DynamicType = ()>,
{
    let (again, changes) = mpsc::channel(WAITING_MAX);
    (Announce { again, listening: listening.clone() }, changes)
}

impl<K: Resource<DynamicType = ()>> Announce<K> {
    /// Waits while the channel is full: then those that are asked for are looked at.
    async fn changed(&self, object: &K) {
        if self.listening.load(SeqCst) {
            drop(self.again.send(ObjectRef::from_obj(object)).await);
        }
    }
}

/// Who is to be looked at: all there are, and then whoever changed or was asked for.
fn wanted<K>(
    all: Vec<Arc<K>>,
    changed: mpsc::Receiver<ObjectRef<K>>,
    woken: mpsc::Receiver<ObjectRef<K>>,
) -> impl Stream<Item = ObjectRef<K>> + Send
where
    K: Resource<DynamicType = ()> + Send + Sync + 'static,
{
    let all: Vec<_> = all.iter().map(|object| ObjectRef::from_obj(object.as_ref())).collect();
    stream::select(stream::iter(all), stream::select(receiver_stream(changed), receiver_stream(woken)))
}

/// Keeps one cache full and names what changed.
async fn watched<K>(objects: Api<K>, writer: Writer<K>, announce: Announce<K>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let changed = predicates::generation.combine(predicates::finalizers);
    watcher(objects, watcher::Config::default())
        .default_backoff()
        .modify(lighten)
        .reflect(writer)
        .touched_objects()
        .predicate_filter(changed, Default::default())
        .for_each(async |touched| match touched {
            Ok(object) => announce.changed(&object).await,
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), error = %error_chain(&error), "Objects are not watched, trying again");
            }
        })
        .await;
}

/// What nobody here reads is not kept: of a finished Backup it is more than half.
pub fn lighten<K: Resource>(object: &mut K) {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

/// A Secret that changed makes its targets be looked at at once.
async fn touch_targets(context: &Context, secret: &Secret, announce: &Announce<ClusterBackupTarget>) {
    let name = secret.name_any();
    for target in context.targets.state().iter().filter(|t| t.spec.credentials.secret_name == name) {
        announce.changed(target).await;
    }
}

/// Waits until every cache was filled once: before that, "not there" means nothing.
async fn caches_filled(context: &Context) {
    async fn filled<K>(store: &Store<K>)
    where
        K: Lookup + Clone + 'static,
        K::DynamicType: Eq + std::hash::Hash + Clone,
    {
        // The writer lives as long as we do: it cannot be dropped before.
        drop(store.wait_until_ready().await);
    }
    future::join4(
        filled(context.backups.cache()),
        filled(context.restores.cache()),
        filled(&context.targets),
        filled(&context.secrets),
    )
    .await;
}

async fn reconcile_kind<K: Kind>(
    context: &Arc<Context>,
    changes: impl Stream<Item = ObjectRef<K>> + Send,
    stop: &CancellationToken,
) {
    let requests = changes.map(Ok::<_, Infallible>).map_ok(ReconcileRequest::from);
    applier(
        |object, context| Box::pin(work::reconcile(object, context)),
        work::after_error,
        context.clone(),
        K::objects(context).cache().clone(),
        requests.take_until(stop.cancelled()),
        ControllerConfig::default().concurrency(CONCURRENT_RECONCILES),
    )
    .for_each(async |_| {})
    .await;
}

async fn reconcile_targets(
    context: &Arc<Context>,
    changes: impl Stream<Item = ObjectRef<ClusterBackupTarget>> + Send,
    stop: &CancellationToken,
) {
    let requests = changes.map(Ok::<_, Infallible>).map_ok(ReconcileRequest::from);
    let targets = Arc::new(Targets::new(context.clone()));
    applier(
        |target, targets| Box::pin(target::reconcile(target, targets)),
        target::after_error,
        targets,
        context.targets.clone(),
        requests.take_until(stop.cancelled()),
        ControllerConfig::default().concurrency(CONCURRENT_RECONCILES),
    )
    .for_each(async |_| {})
    .await;
}

/// A channel's receiving end as a stream.
fn receiver_stream<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> + Send {
    stream::unfold(receiver, async |mut receiver| receiver.recv().await.map(|item| (item, receiver)))
}
