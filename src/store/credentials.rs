//! Where a worker's credentials come from. A mounted secret may change while the worker runs, so a directory is read
//! again before an authorisation failure counts as a refusal.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
};

use aws_credential_types::{
    Credentials as SdkCredentials,
    provider::{ProvideCredentials, SharedCredentialsProvider, future},
};

use super::error::{ErrorKind, StoreError};
use crate::model::{Credentials, FailureReason};

/// Keys of a Longhorn credential secret (longhorn-manager `types.go`), each a file of the mounted secret.
pub const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
pub const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
pub const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

#[derive(Debug, Clone)]
pub enum CredentialSource {
    /// The command line's.
    Given(Credentials),
    /// A mounted secret: one file per key.
    Mounted(PathBuf),
    /// A directory target needs none.
    None,
}

impl CredentialSource {
    /// Reads the credentials as they are now.
    pub fn read(&self) -> Result<Credentials, StoreError> {
        match self {
            CredentialSource::Given(credentials) => Ok(credentials.clone()),
            CredentialSource::Mounted(folder) => read_folder(folder),
            CredentialSource::None => Ok(Credentials::default()),
        }
    }
}

fn read_folder(folder: &Path) -> Result<Credentials, StoreError> {
    let read = |key: &str| std::fs::read_to_string(folder.join(key));
    let required = |key: &str| {
        read(key).map_err(|error| {
            let seen = format!("{error}; the secret needs the key {key}");
            StoreError::new(ErrorKind::Refused(FailureReason::AccessDenied), "READ", folder.join(key).display(), seen)
        })
    };
    Ok(Credentials {
        access_key_id: required(ACCESS_KEY_ID)?,
        secret_access_key: required(SECRET_ACCESS_KEY)?,
        session_token: read(SESSION_TOKEN).ok().filter(|token| !token.is_empty()),
    })
}

/// The credentials in use, shared between the signer and whoever refreshes them.
#[derive(Clone)]
pub struct Current {
    source: CredentialSource,
    now: Arc<RwLock<Credentials>>,
}

impl Current {
    pub fn open(source: CredentialSource) -> Result<Self, StoreError> {
        let now = Arc::new(RwLock::new(source.read()?));
        Ok(Self { source, now })
    }

    /// Reads the source again; `true` if the credentials changed.
    pub fn refresh(&self) -> Result<bool, StoreError> {
        let fresh = self.source.read()?;
        let mut now = self.now.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_changed = *now != fresh;
        *now = fresh;
        Ok(is_changed)
    }

    /// Do they end by themselves, and open less than a key of one's own?
    pub fn is_session(&self) -> bool {
        self.now.read().unwrap_or_else(std::sync::PoisonError::into_inner).session_token.is_some()
    }

    pub fn provider(&self) -> SharedCredentialsProvider {
        SharedCredentialsProvider::new(self.clone())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current(…)")
    }
}

impl ProvideCredentials for Current {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let now = self.now.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        future::ProvideCredentials::ready(Ok(SdkCredentials::new(
            now.access_key_id,
            now.secret_access_key,
            now.session_token,
            None,
            "tidemark",
        )))
    }
}
