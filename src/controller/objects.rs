//! The objects of one kind: the cache, our own last writes until the cache has them, and a way to ask for a look.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::{sync::mpsc, time::Instant};

use super::feed::lighten;

/// The objects of one kind, as the leader knows them.
pub struct Objects<K: Resource<DynamicType = ()> + Clone + 'static> {
    cache: Store<K>,
    written: Mutex<HashMap<String, LastWrite<K>>>,
    wake: mpsc::Sender<ObjectRef<K>>,
}

/// Our last write of a status, until the cache has it.
struct LastWrite<K> {
    /// The resourceVersion it replaced, and the object; none once the cache has seen it.
    unseen: Option<(Option<String>, Arc<K>)>,
    at: Instant,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Objects<K> {
    pub fn new(cache: Store<K>, wake: mpsc::Sender<ObjectRef<K>>) -> Self {
        Self { cache, written: Mutex::default(), wake }
    }

    pub fn cache(&self) -> &Store<K> {
        &self.cache
    }

    /// All of them.
    pub fn state(&self) -> Vec<Arc<K>> {
        self.cache.state()
    }

    pub fn get(&self, reference: &ObjectRef<K>) -> Option<Arc<K>> {
        self.cache.get(reference)
    }

    /// The cached object, or what we wrote over it if the cache has not seen that yet.
    pub fn freshest(&self, cached: Arc<K>) -> Arc<K> {
        let mut written = self.written();
        let Some(last) = written.get_mut(&cached.uid().unwrap_or_default()) else { return cached };
        match &last.unseen {
            Some((Some(replaced), object)) if cached.resource_version().as_ref() == Some(replaced) => object.clone(),
            _ => {
                last.unseen = None;
                cached
            }
        }
    }

    /// Remembers what we wrote until the cache has it.
    pub fn wrote(&self, before: &K, mut after: K) -> Arc<K> {
        lighten(&mut after);
        let object = Arc::new(after);
        let last = LastWrite { unseen: Some((before.resource_version(), object.clone())), at: Instant::now() };
        self.written().insert(object.uid().unwrap_or_default(), last);
        object
    }

    /// Whoever holds it asks for a look.
    pub fn waker(&self) -> mpsc::Sender<ObjectRef<K>> {
        self.wake.clone()
    }

    /// Since we wrote this object's status; absent: we did not.
    pub fn since_write(&self, uid: &str) -> Option<Duration> {
        self.written().get(uid).map(|last| last.at.elapsed())
    }

    /// Looks at these soon. A full channel loses the hint, not the object: each looks again by itself.
    pub fn wake(&self, uids: &[String]) {
        let wanted = |object: &K| object.meta().uid.as_ref().is_some_and(|uid| uids.contains(uid));
        for object in self.cache.state().iter().filter(|object| wanted(object)) {
            drop(self.wake.try_send(ObjectRef::from_obj(object.as_ref())));
        }
    }

    /// Forgets every object that is no more.
    pub fn forget(&self, lives: &HashSet<String>) {
        self.written().retain(|uid, _| lives.contains(uid));
    }

    fn written(&self) -> MutexGuard<'_, HashMap<String, LastWrite<K>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
