//! How a client waits for the next leader, or for a server that answers.

use super::error::ClientError;
use crate::routes::{IDEMPOTENCY_KEY, ROUTES};
use hyper::header::HeaderValue;
use hyper::{Method, Request};
use mvm_model::Code;
use mvm_model::retry::{Next, pause, retry};
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A wait is announced once it lasts this long.
const QUIET: Duration = Duration::from_secs(2);

/// Operations that may be carried out twice although their method does not say so: the second call
/// sets what the first has set.
const REPEATABLE: [&str; 2] = ["node.duty", "job.cancel"];

/// How long a client repeats a request, what announces that it waits, and what may start the
/// missing server.
#[derive(Clone)]
pub struct Patience {
    limit: Duration,
    announce: Arc<dyn Fn(&str) + Send + Sync>,
    revive: Arc<dyn Fn() + Send + Sync>,
    /// The last announcement and its time, shared by all waits that one command has at a time.
    last_announced: Arc<Mutex<Option<(String, Instant)>>>,
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Patience").field(&self.limit).finish()
    }
}

impl Patience {
    /// Returns a patience of `limit`. `announce` is called once with what the client waits for, after
    /// two seconds.
    pub fn new(limit: Duration, announce: impl Fn(&str) + Send + Sync + 'static) -> Patience {
        Patience {
            limit,
            announce: Arc::new(announce),
            revive: Arc::new(|| {}),
            last_announced: Arc::default(),
        }
    }

    /// Calls `revive` before each try, once no server has answered for two seconds. `revive` may
    /// start the server. It must not block.
    pub fn reviving(self, revive: impl Fn() + Send + Sync + 'static) -> Patience {
        Patience { revive: Arc::new(revive), ..self }
    }

    /// Returns a patience that gives up at once.
    pub fn none() -> Patience {
        Patience::new(Duration::ZERO, |_| {})
    }

    /// Returns how long a request is repeated.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Begins the waiting of one request. Its time counts from the first failure. `alone`: there is
    /// no other server to ask, so a silent server is not waited for again.
    pub(super) fn waiting(&self, alone: bool) -> Waiting {
        Waiting { patience: self.clone(), began: None, count: 0, announced: false, alone }
    }

    /// Announces why a client waits, unless the same was announced recently.
    fn announce(&self, why: &str, left: Duration) {
        let mut last_announced = self.last_announced.lock();
        if last_announced
            .as_ref()
            .is_some_and(|(last, at)| last == why && at.elapsed() < self.limit)
        {
            return;
        }
        *last_announced = Some((why.to_owned(), Instant::now()));
        (self.announce)(&format!("{why}; trying again for {} s", left.as_secs()));
    }

    /// Calls `revive` where the server does not answer. `elapsed` is the time since the first
    /// failure.
    pub(super) fn gone(&self, code: Option<Code>, elapsed: Duration) {
        if code == Some(Code::AgentUnreachable) && elapsed >= QUIET {
            (self.revive)();
        }
    }
}

/// The waiting of one request.
#[derive(Debug)]
pub struct Waiting {
    patience: Patience,
    /// The time of the first failure.
    began: Option<Instant>,
    /// The number of failures.
    count: u32,
    announced: bool,
    /// Whether there is no other server to ask; then a silent server is not waited for again.
    alone: bool,
}

impl Waiting {
    /// Records a failure with this code and cause `why`. Rests before the next try, and returns
    /// whether there is to be one.
    pub fn after(
        &mut self,
        code: Option<Code>,
        why: &dyn fmt::Display,
        repeatable: bool,
    ) -> impl Future<Output = bool> + Send + use<> {
        let pause = self.next(code, why, repeatable);
        async move {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            pause.is_some()
        }
    }

    /// Returns how long to rest before the next try; `None` where there is to be no other.
    fn next(
        &mut self,
        code: Option<Code>,
        why: &dyn fmt::Display,
        repeatable: bool,
    ) -> Option<Duration> {
        let began = *self.began.get_or_insert_with(Instant::now);
        let (elapsed, limit) = (began.elapsed(), self.patience.limit);
        let silent = self.alone && code == Some(Code::AgentSilent);
        if silent || retry(code, repeatable, elapsed, limit) == Next::Fail {
            return None;
        }
        if !self.announced && elapsed >= QUIET {
            self.announced = true;
            self.patience.announce(&why.to_string(), limit.saturating_sub(elapsed));
        }
        self.patience.gone(code, elapsed);
        self.count += 1;
        Some(pause(self.count))
    }

    /// Like [`Waiting::after`] for a client's error, which is returned where no try is left.
    pub(super) async fn again(
        &mut self,
        error: ClientError,
        repeatable: bool,
    ) -> Result<(), ClientError> {
        match self.after(error.code(), &error, repeatable).await {
            true => Ok(()),
            false => Err(error),
        }
    }

    /// Notes progress: the next failure begins another wait.
    pub fn went_on(&mut self) {
        (self.began, self.count, self.announced) = (None, 0, false);
    }
}

/// Gives a request that creates something an idempotency key, where a client of this patience may
/// repeat it. Returns whether the request may be carried out twice.
pub(super) fn make_repeatable<B>(request: &mut Request<B>, patience: &Patience) -> bool {
    let (method, path) = (request.method(), request.uri().path());
    if method.is_safe() || request.headers().contains_key(IDEMPOTENCY_KEY) {
        return true;
    }
    let fits =
        |route: &&crate::routes::Route| route.method == method.as_str() && is_of(route.path, path);
    let route = ROUTES.iter().find(fits);
    if !patience.limit.is_zero() && route.is_some_and(|route| route.once) {
        let mut drawn = [0; 16];
        if getrandom::fill(&mut drawn).is_ok()
            && let Ok(key) = HeaderValue::from_str(&format!("{:032x}", u128::from_be_bytes(drawn)))
        {
            request.headers_mut().insert(IDEMPOTENCY_KEY, key);
            return true;
        }
    }
    let named = route.is_some_and(|route| REPEATABLE.contains(&route.operation));
    *request.method() == Method::PUT || named
}

/// Returns whether a path belongs to a route. `{…}` in the route stands for any one segment.
fn is_of(route: &str, path: &str) -> bool {
    let (mut wanted, mut parts) = (route.split('/'), path.split('/'));
    loop {
        match (wanted.next(), parts.next()) {
            (None, None) => return true,
            (Some(wanted), Some(part)) if wanted == part || wanted.starts_with('{') => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;
    use parking_lot::Mutex;

    fn request(method: &str, path: &str) -> Request<()> {
        Request::builder().method(method).uri(path).body(()).expect("a request")
    }

    fn client(limit: u64) -> Client {
        Client::new("/nowhere").patient(Patience::new(Duration::from_secs(limit), |_| {}))
    }

    #[test]
    fn what_makes_something_gets_a_key_and_what_cannot_be_repeated_none() {
        let patient = client(60);
        let repeatable = |method: &str, path: &str| {
            let mut request = request(method, path);
            let may = make_repeatable(&mut request, patient.patience());
            (may, request.headers().contains_key(IDEMPOTENCY_KEY))
        };
        assert_eq!(repeatable("POST", "/v1/tenants/ci/pools/runners/jobs"), (true, true));
        assert_eq!(repeatable("POST", "/v1/nodes"), (true, true));
        assert_eq!(repeatable("GET", "/v1/jobs?tenant=ci"), (true, false));
        assert_eq!(repeatable("PUT", "/v1/fleet"), (true, false));
        assert_eq!(repeatable("POST", "/v1/nodes/n1/duty"), (true, false));
        assert_eq!(repeatable("DELETE", "/v1/nodes/n1"), (false, false));
        assert_eq!(repeatable("POST", "/v1/jobs/j-00000001/submit"), (false, false));
        let mut request = request("POST", "/v1/nodes");
        assert!(!make_repeatable(&mut request, client(0).patience()), "it asks once");
        assert!(!request.headers().contains_key(IDEMPOTENCY_KEY));
    }

    type Announcements = Arc<Mutex<Vec<String>>>;

    fn announcing_client(limit: Duration) -> (Client, Announcements) {
        let announced = Announcements::default();
        let into = announced.clone();
        let tell = move |line: &str| into.lock().push(line.to_owned());
        (Client::new("/nowhere").patient(Patience::new(limit, tell)), announced)
    }

    /// Sets the time of the first failure to `ms` milliseconds ago.
    fn begun(waiting: &mut Waiting, ms: u64) {
        waiting.began = Instant::now().checked_sub(Duration::from_millis(ms));
    }

    #[tokio::test]
    async fn who_waits_gives_up_in_the_end() {
        let (client, _) = announcing_client(Duration::from_millis(50));
        assert!(
            !client.waiting().after(Some(Code::QuotaExceeded), &"too many", true).await,
            "an answer"
        );
        let mut waiting = client.waiting();
        assert!(waiting.after(Some(Code::NoLeader), &"nobody leads", false).await);
        begun(&mut waiting, 60);
        assert!(!waiting.after(Some(Code::NoLeader), &"nobody leads", false).await);
    }

    #[tokio::test]
    async fn what_a_command_waits_for_is_told_once() {
        let (client, announced) = announcing_client(Duration::from_secs(60));
        for _ in 0..2 {
            let mut waiting = client.waiting();
            begun(&mut waiting, 10_000);
            for _ in 0..3 {
                assert!(waiting.after(Some(Code::NoLeader), &"nobody leads", false).await);
            }
        }
        let announced = announced.lock();
        assert_eq!(announced.len(), 1, "{announced:?}");
        assert!(announced[0].starts_with("nobody leads; trying again for "), "{announced:?}");
    }

    #[tokio::test]
    async fn silence_is_waited_for_again_only_where_another_may_answer() {
        let (client, _) = announcing_client(Duration::from_secs(60));
        assert!(!client.waiting().after(Some(Code::AgentSilent), &"silence", true).await);
        let several = client.or(Client::new("/elsewhere"));
        assert!(several.waiting().after(Some(Code::AgentSilent), &"silence", true).await);
    }

    #[tokio::test]
    async fn who_is_gone_for_two_seconds_is_revived() {
        let count = Arc::new(Mutex::new(0));
        let counted = count.clone();
        let patience = Patience::new(Duration::from_secs(60), |_| {});
        let patience = patience.reviving(move || *counted.lock() += 1);
        let mut waiting = Client::new("/nowhere").patient(patience).waiting();
        assert!(waiting.after(Some(Code::AgentUnreachable), &"nobody", true).await);
        assert_eq!(*count.lock(), 0, "it may be on its way");
        begun(&mut waiting, 2500);
        assert!(waiting.after(Some(Code::NoLeader), &"nobody leads", true).await);
        assert_eq!(*count.lock(), 0, "somebody answers");
        assert!(waiting.after(Some(Code::AgentUnreachable), &"nobody", true).await);
        assert_eq!(*count.lock(), 1);
    }
}
