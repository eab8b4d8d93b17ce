//! A UDP relay that treats packets badly: it loses, delays, repeats and reorders them, as its seed says, or drops all.

use super::Numbers;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// How a proxy treats packets. Shares are of 1.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Treatment {
    pub(crate) lost: f64,
    /// Each is late by between nothing and this.
    pub(crate) late: Duration,
    pub(crate) repeated: f64,
    /// Packets that overtake those before them: they are not late at all.
    pub(crate) overtaking: f64,
    /// Bytes a second in each direction, if limited.
    pub(crate) rate: Option<u64>,
}

/// What a proxy has done so far.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) passed: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) repeated: AtomicU64,
}

/// A relay to one listener. It ends with the test.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) done: Arc<Done>,
    partition: Arc<AtomicBool>,
}

impl Proxy {
    /// A relay to `listener`.
    pub(crate) fn new(listener: &str, treatment: Treatment, seed: u64) -> Self {
        let upstream: SocketAddr = listener.parse().unwrap();
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = front.local_addr().unwrap();
        let done = Arc::new(Done::default());
        let partition = Arc::new(AtomicBool::new(false));
        let up = Lane::start(treatment, seed, &done, &partition);
        let down = Lane::start(treatment, seed ^ 1, &done, &partition);
        std::thread::spawn(move || {
            // One socket towards the listener for each client, so that it can tell them apart.
            let mut clients: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
            let mut packet = vec![0; 1 << 16];
            while let Ok((length, client)) = front.recv_from(&mut packet) {
                let socket = clients.entry(client).or_insert_with(|| {
                    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                    let (back, front, down) = (Arc::clone(&socket), Arc::clone(&front), down.clone());
                    std::thread::spawn(move || {
                        let mut packet = vec![0; 1 << 16];
                        // A listener that is gone answers with errors until it is back.
                        loop {
                            if let Ok(length) = back.recv(&mut packet) {
                                down.take(&packet[..length], &front, client);
                            }
                        }
                    });
                    socket.connect(upstream).unwrap();
                    socket
                });
                up.take(&packet[..length], socket, upstream);
            }
        });
        Self { address, done, partition }
    }

    /// Drops everything, or no longer does.
    pub(crate) fn partition(&self, on: bool) {
        self.partition.store(on, Ordering::Relaxed);
    }
}

/// One direction: packets that wait for their time.
#[derive(Clone)]
struct Lane(Arc<Inner>);

struct Inner {
    treatment: Treatment,
    state: Mutex<State>,
    changed: Condvar,
    done: Arc<Done>,
    partition: Arc<AtomicBool>,
}

struct State {
    numbers: Numbers,
    count: u64,
    /// When the wire is free again.
    free: Instant,
    waiting: BinaryHeap<Reverse<Waiting>>,
}

struct Waiting {
    due: Instant,
    /// Breaks ties, so that packets of one time keep their order.
    number: u64,
    packet: Vec<u8>,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

impl Lane {
    fn start(treatment: Treatment, seed: u64, done: &Arc<Done>, partition: &Arc<AtomicBool>) -> Self {
        let state = State { numbers: Numbers(seed), count: 0, free: Instant::now(), waiting: BinaryHeap::new() };
        let lane = Self(Arc::new(Inner {
            treatment,
            state: Mutex::new(state),
            changed: Condvar::new(),
            done: Arc::clone(done),
            partition: Arc::clone(partition),
        }));
        let sending = lane.clone();
        std::thread::spawn(move || sending.send_forever());
        lane
    }

    fn take(&self, packet: &[u8], socket: &Arc<UdpSocket>, to: SocketAddr) {
        let Inner { treatment, state, changed, done, partition } = &*self.0;
        let mut state = state.lock().unwrap();
        let mut chance = |share: f64| (state.numbers.real() + 1.0) / 2.0 < share;
        let (lost, repeated, overtaking) =
            (chance(treatment.lost), chance(treatment.repeated), chance(treatment.overtaking));
        if lost || partition.load(Ordering::Relaxed) {
            done.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        done.passed.fetch_add(1, Ordering::Relaxed);
        done.repeated.fetch_add(u64::from(repeated), Ordering::Relaxed);
        for _ in 0..1 + u32::from(repeated) {
            let late = treatment.late.mul_f64((state.numbers.real() + 1.0) / 2.0);
            let now = Instant::now();
            if let Some(rate) = treatment.rate {
                state.free = state.free.max(now) + Duration::from_secs_f64(packet.len() as f64 / rate as f64);
            }
            let due = if overtaking { now } else { now.max(state.free) + late };
            state.count += 1;
            let number = state.count;
            let (packet, socket) = (packet.to_vec(), Arc::clone(socket));
            state.waiting.push(Reverse(Waiting { due, number, packet, socket, to }));
        }
        changed.notify_one();
    }

    fn send_forever(&self) {
        let Inner { state, changed, .. } = &*self.0;
        let mut state = state.lock().unwrap();
        loop {
            let now = Instant::now();
            state = match state.waiting.peek().map(|Reverse(w)| w.due) {
                None => changed.wait(state).unwrap(),
                Some(due) if due > now => changed.wait_timeout(state, due - now).unwrap().0,
                Some(_) => {
                    let Some(Reverse(Waiting { packet, socket, to, .. })) = state.waiting.pop() else { continue };
                    // A connected socket knows where to; an error is a packet lost.
                    let _ = if socket.peer_addr().is_ok() { socket.send(&packet) } else { socket.send_to(&packet, to) };
                    state
                }
            };
        }
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
