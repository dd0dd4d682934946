//! Calls to etcd's JSON gateway: several endpoints, authentication, a bound on every wait.

use super::wire::{self, Condition, Kv, Lease, Range, Token, Txn, encode};
use super::{EtcdError, EtcdOptions, tls};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::io::{BufReader, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use ureq::{Agent, Body, BodyReader, http};

/// The longest answer that is read, in bytes: a million leases of flannel's size.
const ANSWER_LEN_MAX: u64 = 512 << 20;
/// A long answer may take this many times as long as the first byte of one.
const BODY_PATIENCE: u32 = 6;
/// Number of the watch on one key in a stream. etcd numbers the other one by itself, from 0.
pub const KEY_WATCH: i64 = 1;

/// A connection to an etcd cluster. Clones share everything.
#[derive(Clone)]
pub struct Gateway {
    shared: Arc<Shared>,
}

struct Shared {
    endpoints: Vec<String>,
    /// The endpoint that is asked first.
    preferred: AtomicUsize,
    credentials: Option<(String, String)>,
    token: Mutex<Option<String>>,
    /// For calls.
    agent: Agent,
    /// For streams, each of which has an agent of its own to be interrupted by.
    stream_config: ureq::config::Config,
}

/// Why one call to one endpoint failed.
enum Failure {
    /// It did not answer in time, or cannot serve. Another may.
    Unreachable { why: String, was_silent: bool },
    /// It wants a token, or another one.
    Token(String),
    /// It will not.
    Refused(String),
}

/// Whether a transaction's condition held.
#[derive(Debug)]
pub enum Outcome {
    /// Written, at this revision.
    Done(i64),
    /// Not written; this is the key's state.
    Lost(Option<Kv>),
}

/// A stream that is about to be opened at an endpoint.
#[derive(Clone)]
pub struct Opening {
    /// Where it will come from.
    pub endpoint: usize,
    /// [`Agent::shutdown`] ends it from another thread, while it is being opened and later.
    pub agent: Agent,
}

/// Messages, one a line.
pub type Lines = BufReader<BodyReader<'static>>;

impl Gateway {
    /// Checks the options; does not talk to etcd yet.
    pub fn new(options: &EtcdOptions) -> Result<Gateway, EtcdError> {
        let mut endpoints = Vec::new();
        for endpoint in options.endpoints.iter().map(|endpoint| endpoint.trim()).filter(|text| !text.is_empty()) {
            let uri: http::Uri = endpoint.parse().map_err(|_| bad_endpoint(endpoint))?;
            let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
            let has_user = uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
            if !is_known || has_user || !uri.path().trim_matches('/').is_empty() || uri.query().is_some() {
                return Err(bad_endpoint(endpoint));
            }
            endpoints.push(endpoint.trim_end_matches('/').to_owned());
        }
        if endpoints.is_empty() {
            return Err(EtcdError::Options("--etcd-endpoints is empty; it has to name an etcd server".into()));
        }
        let credentials = match (&options.username, &options.password) {
            (Some(name), Some(password)) => Some((name.clone(), password.clone())),
            (None, None) => None,
            _ => {
                return Err(EtcdError::Options(
                    "--etcd-username and --etcd-password go together; one is missing".into(),
                ));
            }
        };
        let tls = tls::config(options)?;
        let config = || {
            Agent::config_builder()
                .tls_config(tls.clone())
                .http_status_as_error(false)
                .max_redirects(0)
                .proxy(None)
                .user_agent(concat!("weft/", env!("CARGO_PKG_VERSION")))
                .timeout_resolve(Some(options.timeout))
                .timeout_connect(Some(options.timeout))
                .timeout_send_request(Some(options.timeout))
                .timeout_send_body(Some(options.timeout))
                .timeout_recv_response(Some(options.timeout))
        };
        let agent = config().timeout_recv_body(Some(options.timeout * BODY_PATIENCE)).build().new_agent();
        let stream_config = config().build();
        let (preferred, token) = (AtomicUsize::new(0), Mutex::new(None));
        Ok(Gateway { shared: Arc::new(Shared { endpoints, preferred, credentials, token, agent, stream_config }) })
    }

    /// The index of the endpoint that is asked first.
    pub fn preferred(&self) -> usize {
        self.shared.preferred.load(Ordering::Relaxed)
    }

    /// Interrupts what is under way; every later call fails.
    pub fn shut_down(&self) {
        self.shared.agent.clone().shutdown();
    }

    /// Has the next call authenticate anew.
    pub fn forget_token(&self) {
        *self.token() = None;
    }

    /// The key, and the store's revision.
    pub fn get(&self, key: &str) -> Result<(wire::Header, Option<Kv>), EtcdError> {
        let range: Range = self.call("kv/range", &json!({"key": encode(key.as_bytes())}))?;
        Ok((range.header, range.kvs.into_iter().next()))
    }

    /// All keys that begin with `directory`, which ends with a slash, in one answer.
    pub fn list(&self, directory: &str) -> Result<Range, EtcdError> {
        self.call("kv/range", &json!({"key": encode(directory.as_bytes()), "range_end": encode(&end_of(directory))}))
    }

    /// Puts a value with a lease (0: without), or deletes, if the condition holds.
    pub fn write(&self, key: &str, condition: Condition, put: Option<(&str, i64)>) -> Result<Outcome, EtcdError> {
        let put = put.map(|(value, lease)| (value.as_bytes(), lease));
        let txn: Txn = self.call("kv/txn", &wire::txn(key.as_bytes(), condition, put))?;
        Ok(match txn.succeeded {
            true => Outcome::Done(txn.header.revision),
            false => Outcome::Lost(txn.current()),
        })
    }

    /// A new etcd lease of `ttl`.
    pub fn grant(&self, ttl: Duration) -> Result<Lease, EtcdError> {
        self.call("lease/grant", &json!({"TTL": ttl.as_secs().max(1).to_string()}))
    }

    /// Ends an etcd lease; keys on it are deleted.
    pub fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        self.call("lease/revoke", &json!({"ID": lease.to_string()})).map(|_: Value| ())
    }

    /// Begins an etcd lease's time anew; gives its length, 0 if there is no such lease.
    pub fn keep_alive(&self, lease: i64) -> Result<Duration, EtcdError> {
        let path = "lease/keepalive";
        let text = self.ask(path, &json!({"ID": lease.to_string()}))?;
        let line = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let answer: Lease = wire::streamed(line)
            .map_err(|why| EtcdError::Refused(format!("the answer to {path} cannot be used: {why}")))?;
        Ok(Duration::from_secs(answer.ttl.max(0) as u64))
    }

    /// Prepares a stream from the preferred endpoint.
    pub fn opening(&self) -> Opening {
        Opening { endpoint: self.preferred(), agent: self.shared.stream_config.new_agent() }
    }

    /// Opens a stream of two watches, both beginning with `revision`: on all keys below `directory`, and on `key`, whose
    /// messages are those with [`KEY_WATCH`].
    pub fn watch(&self, opening: &Opening, directory: &str, key: &str, revision: i64) -> Result<Lines, EtcdError> {
        let start = revision.to_string();
        let on_directory = json!({"create_request": {
            "key": encode(directory.as_bytes()),
            "range_end": encode(&end_of(directory)),
            "start_revision": start,
        }});
        let on_key = json!({"create_request": {
            "key": encode(key.as_bytes()),
            "start_revision": start,
            "watch_id": KEY_WATCH.to_string(),
        }});
        let request = format!("{on_directory}\n{on_key}");
        let endpoint = opening.endpoint;
        let opened = self.at(endpoint, |token| self.send(&opening.agent, endpoint, "watch", request.clone(), token));
        match opened {
            Ok(body) => Ok(BufReader::new(body.into_reader())),
            Err(failure) => {
                if let Failure::Unreachable { .. } = failure {
                    self.prefer(endpoint + 1);
                }
                Err(self.error(vec![failure]))
            }
        }
    }

    fn call<A: DeserializeOwned>(&self, path: &str, request: &Value) -> Result<A, EtcdError> {
        let text = self.ask(path, request)?;
        serde_json::from_slice(&text)
            .map_err(|error| EtcdError::Refused(format!("the answer to {path} cannot be used: {error}")))
    }

    /// Asks one endpoint after the other until one answers.
    fn ask(&self, path: &str, request: &Value) -> Result<Vec<u8>, EtcdError> {
        let count = self.shared.endpoints.len();
        let first = self.preferred();
        let mut failures = Vec::new();
        // With one endpoint there are two tries: a connection kept from the last call may have ended meanwhile.
        for turn in 0..count.max(2) {
            let endpoint = (first + turn) % count;
            let asked = self.at(endpoint, |token| {
                let body = self.send(&self.shared.agent, endpoint, path, request.to_string(), token)?;
                self.read(endpoint, body)
            });
            match asked {
                Ok(text) => {
                    self.prefer(endpoint);
                    return Ok(text);
                }
                Err(Failure::Unreachable { why, was_silent }) => {
                    failures.push(Failure::Unreachable { why, was_silent });
                    if count == 1 && was_silent {
                        break;
                    }
                }
                Err(failure) => return Err(self.error(vec![failure])),
            }
        }
        // The next call begins elsewhere, should all of them have been slow rather than dead.
        self.prefer(first + 1);
        Err(self.error(failures))
    }

    /// Calls one endpoint with a token; once more with a new token if the one we had is over.
    fn at<T>(&self, endpoint: usize, call: impl Fn(Option<&str>) -> Result<T, Failure>) -> Result<T, Failure> {
        let held = self.token().clone();
        let was_held = held.is_some();
        let token = match held {
            Some(token) => Some(token),
            None => self.authenticate(endpoint)?,
        };
        match call(token.as_deref()) {
            Err(Failure::Token(_)) if was_held => {
                self.forget_token();
                let token = self.authenticate(endpoint)?;
                call(token.as_deref())
            }
            other => other,
        }
    }

    fn authenticate(&self, endpoint: usize) -> Result<Option<String>, Failure> {
        let Some((name, password)) = &self.shared.credentials else { return Ok(None) };
        let request = json!({"name": name, "password": password});
        let body = match self.send(&self.shared.agent, endpoint, "auth/authenticate", request.to_string(), None) {
            // A password for an etcd that wants none is no harm.
            Err(Failure::Refused(why)) if why.contains("authentication is not enabled") => return Ok(None),
            Err(Failure::Token(why)) => return Err(Failure::Refused(why)),
            answer => answer?,
        };
        let text = self.read(endpoint, body)?;
        let token: Token = serde_json::from_slice(&text)
            .map_err(|_| Failure::Refused(format!("{} gave no token", self.shared.endpoints[endpoint])))?;
        *self.token() = Some(token.token.clone());
        Ok(Some(token.token))
    }

    fn send(
        &self,
        agent: &Agent,
        endpoint: usize,
        path: &str,
        request: String,
        token: Option<&str>,
    ) -> Result<Body, Failure> {
        let place = &self.shared.endpoints[endpoint];
        // `hasleader`: a member that lost its cluster says so rather than staying silent.
        let mut post = agent
            .post(format!("{place}/v3/{path}"))
            .header("Content-Type", "application/json")
            .header("Grpc-Metadata-hasleader", "true");
        if let Some(token) = token {
            post = post.header("Authorization", token);
        }
        let response = post.send(request).map_err(|error| unreachable(place, &error))?;
        if response.status() == http::StatusCode::OK {
            return Ok(response.into_body());
        }
        let status = response.status();
        let is_json =
            response.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let text = self.read(endpoint, response.into_body())?;
        Err(refusal(place, path, status, is_json, &text))
    }

    fn read(&self, endpoint: usize, body: Body) -> Result<Vec<u8>, Failure> {
        let place = &self.shared.endpoints[endpoint];
        let mut text = Vec::new();
        match body.into_with_config().limit(ANSWER_LEN_MAX).reader().read_to_end(&mut text) {
            Ok(_) => Ok(text),
            Err(error) => Err(Failure::Unreachable { why: format!("{place}: {error}"), was_silent: false }),
        }
    }

    fn prefer(&self, endpoint: usize) {
        self.shared.preferred.store(endpoint % self.shared.endpoints.len(), Ordering::Relaxed);
    }

    fn token(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.shared.token.lock().expect("no holder of this lock can panic")
    }

    fn error(&self, failures: Vec<Failure>) -> EtcdError {
        let mut whys: Vec<String> = Vec::new();
        for failure in failures {
            match failure {
                Failure::Unreachable { why, .. } if whys.contains(&why) => {}
                Failure::Unreachable { why, .. } => whys.push(why),
                Failure::Token(why) if self.shared.credentials.is_none() => {
                    return EtcdError::Refused(format!("{why}; --etcd-username and --etcd-password are missing"));
                }
                Failure::Token(why) | Failure::Refused(why) => return EtcdError::Refused(why),
            }
        }
        EtcdError::Unreachable(whys.join("; "))
    }
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("endpoints", &self.shared.endpoints).finish_non_exhaustive()
    }
}

/// The key behind all that begin with `directory`: its last byte, a slash, and one more.
fn end_of(directory: &str) -> Vec<u8> {
    let mut end = directory.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// A user name in the URL would be shown with it.
fn bad_endpoint(endpoint: &str) -> EtcdError {
    let shown = endpoint.rsplit('@').next().unwrap_or_default();
    EtcdError::Options(format!(
        "--etcd-endpoints has {shown:?}; expected a URL such as \"https://192.0.2.1:2379\", without user and path"
    ))
}

fn unreachable(place: &str, error: &ureq::Error) -> Failure {
    let was_silent = matches!(error, ureq::Error::Timeout(_));
    let hint = match error {
        ureq::Error::Rustls(_) => {
            " (--etcd-cafile, --etcd-certfile and --etcd-keyfile say whom to trust and who we are)"
        }
        _ => "",
    };
    Failure::Unreachable { why: format!("{place}: {error}{hint}"), was_silent }
}

/// What an answer that is not 200 means. Codes are those of gRPC (`google/rpc/code.proto`).
fn refusal(place: &str, path: &str, status: http::StatusCode, is_json: bool, text: &[u8]) -> Failure {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Refusal {
        message: String,
        error: String,
        code: i64,
    }
    if !is_json && status == http::StatusCode::NOT_FOUND {
        return Failure::Refused(format!(
            "{place} has no /v3/{path}; etcd has to be 3.4 or later, with its JSON gateway (--enable-grpc-gateway) on"
        ));
    }
    let refusal: Refusal = serde_json::from_slice(text).unwrap_or_default();
    let said = [refusal.message, refusal.error].into_iter().find(|text| !text.is_empty());
    let why = match said {
        Some(said) => format!("{place} says {said:?} to {path}"),
        None => format!("{place} answers {path} with HTTP status {status}"),
    };
    const TOKEN_FAULTS: [&str; 3] = ["invalid auth token", "user name is empty", "revision in header is old"];
    match refusal.code {
        16 => Failure::Token(why),
        3 if TOKEN_FAULTS.iter().any(|fault| why.contains(fault)) => Failure::Token(why),
        // Deadline, exhausted, aborted, internal, unavailable.
        4 | 8 | 10 | 13 | 14 => Failure::Unreachable { why, was_silent: false },
        _ if status.is_server_error() => Failure::Unreachable { why, was_silent: false },
        _ => Failure::Refused(why),
    }
}
