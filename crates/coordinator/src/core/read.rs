//! Reading secrets that boards watch over: somebody asks, members agree, the asker reads once.
//!
//! An agreement is for one user and one set of names, is used up by reading, and lapses after a
//! day. The asker's own agreement does not count.

use super::live::{Live, ReadRequest};
use super::{Coordinator, Credentials, Error};
use crate::manifest::{Manifest, Resource};
use std::collections::BTreeSet;
use std::sync::Arc;
use time::OffsetDateTime;

const LIFE_SECONDS: i64 = 24 * 3600;
/// They are part of the state: bounded.
const MOST_REQUESTS: usize = 100;
const MOST_REASON: usize = 500;

/// Where a request stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadOutcome {
    pub id: String,
    pub missing_agreements: usize,
    pub missing_users: Vec<String>,
}

/// A request as board members see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequestView {
    pub user: String,
    pub secrets: Vec<String>,
    pub reason: String,
    pub outcome: ReadOutcome,
}

/// Whether any of the secrets needs a board's agreement.
pub(super) fn is_watched(manifest: &Manifest, names: &[String]) -> bool {
    names.iter().any(|name| {
        manifest
            .secrets
            .get(name)
            .is_some_and(|spec| !spec.read_boards.is_empty())
    })
}

fn boards_of<'a>(manifest: &Manifest, names: impl IntoIterator<Item = &'a String>) -> Vec<String> {
    let boards: BTreeSet<String> = names
        .into_iter()
        .filter_map(|name| manifest.secrets.get(name))
        .flat_map(|spec| spec.read_boards.iter().cloned())
        .collect();
    boards.into_iter().collect()
}

fn outcome(manifest: &Manifest, id: &str, request: &ReadRequest) -> ReadOutcome {
    let boards = boards_of(manifest, &request.secrets);
    let (missing, mut users) = super::update::boards(manifest, &boards, &request.agreed);
    users.remove(&request.user);
    ReadOutcome {
        id: id.to_owned(),
        missing_agreements: missing,
        missing_users: users.into_iter().collect(),
    }
}

fn seconds() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn list(names: &BTreeSet<String>) -> serde_json::Value {
    names.iter().cloned().collect::<Vec<_>>().into()
}

impl Coordinator {
    pub(super) async fn try_request_read(
        &self,
        secrets: &[String],
        reason: &str,
        credentials: Credentials<'_>,
    ) -> Result<ReadOutcome, Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let user = Self::user(&live, credentials)?;
        if secrets.is_empty() || reason.len() > MOST_REASON {
            return Err(Error::BadRequest(format!(
                "name secrets, and a reason of at most {MOST_REASON} bytes"
            )));
        }
        for name in secrets {
            Self::require(&live, &user, Resource::Secrets, name, "ReadSecret")?;
        }
        if !is_watched(&live.manifest, secrets) {
            return Err(Error::BadRequest(
                "no board watches over these secrets: read them".to_owned(),
            ));
        }
        let mut core = live.core.clone();
        core.read_requests.retain(|_, r| is_alive(r));
        if core.read_requests.len() >= MOST_REQUESTS {
            return Err(Error::Refused(format!(
                "{MOST_REQUESTS} requests wait for agreement already"
            )));
        }
        let id = super::namespaces::random_id()?;
        let request = ReadRequest {
            user: user.clone(),
            secrets: secrets.iter().cloned().collect(),
            reason: reason.to_owned(),
            agreed: BTreeSet::new(),
            made: seconds(),
        };
        core.log(
            "Reading requested",
            &[
                ("user", user.into()),
                ("secrets", list(&request.secrets)),
                ("reason", reason.into()),
                ("request", id.as_str().into()),
            ],
        );
        let outcome = outcome(&live.manifest, &id, &request);
        core.read_requests.insert(id, request);
        self.replace(&live, core).await?;
        Ok(outcome)
    }

    /// The requests that a user made, or may agree to.
    pub fn read_requests(
        &self,
        credentials: Credentials<'_>,
    ) -> Result<Vec<ReadRequestView>, Error> {
        let live = self.live()?;
        let user = Self::user(&live, credentials)?;
        Ok(live
            .core
            .read_requests
            .iter()
            .filter(|(_, r)| is_alive(r))
            .filter(|(_, r)| r.user == user || is_member(&live, r, &user))
            .map(|(id, request)| ReadRequestView {
                user: request.user.clone(),
                secrets: request.secrets.iter().cloned().collect(),
                reason: request.reason.clone(),
                outcome: outcome(&live.manifest, id, request),
            })
            .collect())
    }

    pub(super) async fn try_agree_to_read(
        &self,
        id: &str,
        credentials: Credentials<'_>,
    ) -> Result<ReadOutcome, Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let user = Self::user(&live, credentials)?;
        let mut core = live.core.clone();
        // One answer for "not there" and "not yours".
        let request = core
            .read_requests
            .get_mut(id)
            .filter(|request| is_alive(request) && is_member(&live, request, &user))
            .ok_or_else(|| Error::NotFound("there is no such request for you".to_owned()))?;
        if request.user == user {
            return Err(Error::Refused(
                "your own agreement does not count: ask other members".to_owned(),
            ));
        }
        let is_new = request.agreed.insert(user.clone());
        let outcome = outcome(&live.manifest, id, request);
        if is_new {
            let secrets = list(&request.secrets);
            core.log(
                "Reading agreed to",
                &[
                    ("user", user.into()),
                    ("secrets", secrets),
                    ("request", id.into()),
                ],
            );
            self.replace(&live, core).await?;
        }
        Ok(outcome)
    }

    /// Uses up the agreement to exactly these names, or says what is missing.
    pub(super) async fn use_agreement(
        &self,
        user: &str,
        names: &[String],
    ) -> Result<Arc<Live>, Error> {
        let _change = self.change.lock().await;
        let live = self.live()?;
        let wanted: BTreeSet<String> = names.iter().cloned().collect();
        for name in &wanted {
            Self::require(&live, user, Resource::Secrets, name, "ReadSecret")?;
        }
        let boards = boards_of(&live.manifest, &wanted);
        let id = live
            .core
            .read_requests
            .iter()
            .find(|(id, request)| {
                request.user == user
                    && request.secrets == wanted
                    && is_alive(request)
                    && outcome(&live.manifest, id, request).missing_agreements == 0
            })
            .map(|(id, _)| id.clone())
            .ok_or_else(|| {
                Error::Forbidden(format!(
                    "reading needs the agreement of {}: ask with POST /read-requests",
                    boards.join(" and ")
                ))
            })?;
        let mut core = live.core.clone();
        core.read_requests.remove(&id);
        core.log(
            "Secrets read",
            &[
                ("user", user.into()),
                ("secrets", list(&wanted)),
                ("request", id.into()),
            ],
        );
        self.replace(&live, core).await
    }
}

fn is_alive(request: &ReadRequest) -> bool {
    (0..LIFE_SECONDS).contains(&(seconds() - request.made))
}

fn is_member(live: &Live, request: &ReadRequest, user: &str) -> bool {
    boards_of(&live.manifest, &request.secrets)
        .iter()
        .filter_map(|name| live.manifest.boards.get(name))
        .any(|board| board.members.iter().any(|member| member == user))
}
