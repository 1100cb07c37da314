//! Which session a token opens, and for whom.
//!
//! The table holds sessions weakly, and loses those that have ended. Finding and issuing cost the same however many
//! sessions there are: each mmap of a program asks for its token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vidcompat_proto::shim::Token;

/// Users that can have a token of one session: those whom its file was passed to. More are answered as if there were
/// no shim.
const USERS: usize = 16;

/// One token for each session and user who has asked on its file: whoever is passed the file asks anew.
pub struct Tokens<S: ?Sized>(Mutex<Table<S>>);

struct Table<S: ?Sized> {
    by_token: HashMap<Token, (Weak<S>, u32)>,
    /// By the session's address, which stays its own as long as we hold a reference, be it a weak one.
    of_session: HashMap<usize, Vec<(u32, Token)>>,
}

impl<S: ?Sized> Default for Tokens<S> {
    fn default() -> Self {
        Self(Mutex::new(Table {
            by_token: HashMap::new(),
            of_session: HashMap::new(),
        }))
    }
}

impl<S: ?Sized> Tokens<S> {
    fn table(&self) -> std::sync::MutexGuard<'_, Table<S>> {
        // Changed by calls that cannot panic in between.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token of `session` for `uid`. `None`: the kernel has no random numbers, or too many users have asked.
    pub fn issue(&self, session: &Arc<S>, uid: u32) -> Option<Token> {
        let mut guard = self.table();
        let table = &mut *guard;
        let users = table.of_session.entry(address(session)).or_default();
        if let Some((_, token)) = users.iter().find(|(user, _)| *user == uid) {
            return Some(*token);
        }
        if users.len() >= USERS {
            return None;
        }
        let mut token = Token::default();
        let got = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty());
        (got == Ok(token.len())).then(|| {
            users.push((uid, token));
            table.by_token.insert(token, (Arc::downgrade(session), uid));
            token
        })
    }

    /// `token` is that of `session` for `uid`, as a daemon before us has said.
    pub fn issue_again(&self, session: &Arc<S>, uid: u32, token: Token) {
        let mut table = self.table();
        let users = table.of_session.entry(address(session)).or_default();
        if users.len() < USERS && users.iter().all(|(user, _)| *user != uid) {
            users.push((uid, token));
            table.by_token.insert(token, (Arc::downgrade(session), uid));
        }
    }

    /// The session that `token` opens for `uid`.
    pub fn find(&self, token: &Token, uid: u32) -> Option<Arc<S>> {
        let table = self.table();
        let (session, user) = table.by_token.get(token)?;
        if *user == uid { session.upgrade() } else { None }
    }

    /// `session` has ended: its tokens open nothing any more.
    pub fn forget(&self, session: &Arc<S>) {
        let mut guard = self.table();
        let table = &mut *guard;
        for (_, token) in table.of_session.remove(&address(session)).unwrap_or_default() {
            table.by_token.remove(&token);
        }
    }
}

fn address<S: ?Sized>(session: &Arc<S>) -> usize {
    Arc::as_ptr(session).cast::<()>().addr()
}

#[cfg(test)]
mod tests {
    use super::{Tokens, USERS};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn a_token_opens_its_session_to_its_user_and_to_nobody_else() {
        let tokens = Tokens::default();
        let (one, other) = (Arc::new(1), Arc::new(2));
        let mine = tokens.issue(&one, 1000).expect("a token");
        let yours = tokens.issue(&one, 1001).expect("a token");
        let another = tokens.issue(&other, 1000).expect("a token");
        assert!(mine != yours && mine != another && yours != another);
        assert_eq!(tokens.issue(&one, 1000), Some(mine), "the same for the same user");
        assert_eq!(tokens.find(&mine, 1000).as_deref(), Some(&1));
        assert_eq!(tokens.find(&yours, 1001).as_deref(), Some(&1));
        assert_eq!(tokens.find(&another, 1000).as_deref(), Some(&2));
        for uid in [0, 1001, u32::MAX] {
            assert_eq!(tokens.find(&mine, uid), None, "{uid}");
        }
        assert_eq!(tokens.find(&[0; 16], 1000), None);
        let mut near = mine;
        near[15] ^= 1;
        assert_eq!(tokens.find(&near, 1000), None);
    }

    #[test]
    fn what_has_ended_is_not_found_and_leaves_nothing_behind() {
        let tokens = Tokens::default();
        let other = Arc::new(0);
        let kept = tokens.issue(&other, 1).expect("a token");
        for number in 1..100 {
            let session = Arc::new(number);
            let mine = tokens.issue(&session, 1000).expect("a token");
            let yours = tokens.issue(&session, 1001).expect("a token");
            tokens.forget(&session);
            assert_eq!(Arc::strong_count(&session), 1);
            assert_eq!(Arc::weak_count(&session), 0, "nothing holds its memory");
            assert!(tokens.find(&mine, 1000).is_none() && tokens.find(&yours, 1001).is_none());
        }
        assert_eq!(tokens.find(&kept, 1).as_deref(), Some(&0));
        let table = tokens.table();
        assert_eq!((table.by_token.len(), table.of_session.len()), (1, 1));
    }

    #[test]
    fn a_file_that_is_passed_on_and_on_has_an_end() {
        let tokens = Tokens::default();
        let (session, other) = (Arc::new(()), Arc::new(()));
        let first = tokens.issue(&session, 0);
        let given = (0..100).filter(|uid| tokens.issue(&session, *uid).is_some());
        assert_eq!(given.count(), USERS);
        assert_eq!(tokens.issue(&session, 0), first, "who has one keeps it");
        assert!(tokens.issue(&other, 99).is_some(), "of another file");
    }

    #[test]
    fn a_thousand_sessions_do_not_slow_a_hello() {
        let tokens = Tokens::default();
        let sessions: Vec<_> = (0..1024).map(Arc::new).collect();
        for session in &sessions {
            for uid in 0..8 {
                tokens.issue(session, uid).expect("a token");
            }
        }
        // A scan of the table would take some ten seconds.
        let begun = Instant::now();
        for _ in 0..100_000 {
            let token = tokens.issue(&sessions[1023], 7).expect("a token");
            assert!(tokens.find(&token, 7).is_some());
        }
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
}
