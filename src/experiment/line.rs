//! A party's access line to the internet, emulated in this process and without privileges: a relay for UDP packets in
//! front of each listener.
//!
//! A [`Line`] has a rate in each direction and a round trip. All connections of a party share its line, as they would
//! share the cable at its door; coordinator and server have none of their own. A packet waits until those before it are
//! through (`bytes × 8 / rate`), then travels for half a round trip. What waits is bounded by a second's worth of the
//! rate, or `QUEUE_MIN` where that is more; a packet that finds the queue full is lost, and QUIC sends it again.
//!
//! Rates count UDP payload and `HEADER_BYTES` a packet. A thread that sleeps wakes up to a tenth of a millisecond
//! late, so trips are a little longer than they should be, and rates beyond what two cores can copy are those of the
//! machine.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Entry};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// IPv4 and UDP headers of a packet.
const HEADER_BYTES: usize = 28;
/// Room for the first flight of a connection on the slowest lines; a second of 100 kbit/s is eight packets.
const QUEUE_MIN: usize = 96 << 10;
/// How often a thread looks whether the line is closed.
const POLL: Duration = Duration::from_millis(100);
/// What the kernel may keep of a burst while the relay is not running.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What a line carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Bits per second in each direction; without it, as many as the machine can copy.
    pub rate_bit_s: Option<f64>,
    /// Both ways together.
    #[serde(default)]
    pub round_trip_ms: f64,
}

/// When each packet of one direction arrives: a clock that is told the time, so that it can be tested.
struct Lane {
    line: Line,
    /// When the last packet taken is through.
    free: Instant,
}

impl Lane {
    /// When a packet of `bytes` that comes `now` arrives at the other end, or nothing if it is lost.
    fn take(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let Some(rate) = self.line.rate_bit_s else { return Some(now + self.trip()) };
        #[expect(clippy::cast_precision_loss, reason = "a packet has at most 64 KB")]
        let on_the_wire =
            |bytes: usize| Duration::try_from_secs_f64(bytes as f64 * 8.0 / rate).unwrap_or(Duration::MAX);
        let start = self.free.max(now);
        let queue = on_the_wire(QUEUE_MIN).max(Duration::from_secs(1));
        if start - now > queue {
            return None;
        }
        self.free = start + on_the_wire(bytes + HEADER_BYTES);
        Some(self.free + self.trip())
    }

    fn trip(&self) -> Duration {
        Duration::try_from_secs_f64(self.line.round_trip_ms / 2e3).unwrap_or_default()
    }
}

/// One party's line while a session runs. Dropping it ends its threads.
pub struct PartyLine {
    up: Arc<Direction>,
    down: Arc<Direction>,
    closed: Arc<AtomicBool>,
}

impl PartyLine {
    /// A line that nothing is connected to.
    ///
    /// # Errors
    /// [`io::Error`] if a thread cannot be started.
    pub fn open(line: Line) -> io::Result<Self> {
        let closed = Arc::new(AtomicBool::new(false));
        let direction = |name: &str| -> io::Result<Arc<Direction>> {
            let direction = Arc::new(Direction {
                state: Mutex::new((Lane { line, free: Instant::now() }, VecDeque::new())),
                changed: Condvar::new(),
                closed: Arc::clone(&closed),
            });
            let sending = Arc::clone(&direction);
            std::thread::Builder::new().name(format!("line-{name}")).spawn(move || sending.deliver())?;
            Ok(direction)
        };
        Ok(Self { up: direction("up")?, down: direction("down")?, closed })
    }

    /// The address that stands for `listener` at this end of the line.
    ///
    /// # Errors
    /// [`io::Error`] if there is no socket or thread to be had.
    pub fn relay(&self, listener: SocketAddr) -> io::Result<SocketAddr> {
        let front = socket()?;
        let address = front.local_addr()?;
        let (up, down, closed) = (Arc::clone(&self.up), Arc::clone(&self.down), Arc::clone(&self.closed));
        std::thread::Builder::new().name("line-front".into()).spawn(move || {
            // One socket towards the listener for each client, so that it can tell them apart.
            let mut clients: BTreeMap<SocketAddr, Arc<UdpSocket>> = BTreeMap::new();
            receive(&front, &closed, |packet, client| {
                let back = match clients.entry(client) {
                    Entry::Occupied(known) => Arc::clone(known.get()),
                    Entry::Vacant(new) => {
                        let Ok(back) = socket() else { return };
                        new.insert(Arc::clone(&back));
                        let (front, down, closed) = (Arc::clone(&front), Arc::clone(&down), Arc::clone(&closed));
                        let listening = Arc::clone(&back);
                        // Without the thread nothing comes back, and the client gives up as on any broken line.
                        let _ = std::thread::Builder::new()
                            .name("line-back".into())
                            .spawn(move || receive(&listening, &closed, |packet, _| down.take(packet, &front, client)));
                        back
                    }
                };
                up.take(packet, &back, listener);
            });
        })?;
        Ok(address)
    }
}

impl Drop for PartyLine {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        self.up.changed.notify_all();
        self.down.changed.notify_all();
    }
}

struct Direction {
    state: Mutex<(Lane, VecDeque<Packet>)>,
    changed: Condvar,
    closed: Arc<AtomicBool>,
}

struct Packet {
    due: Instant,
    bytes: Vec<u8>,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
}

impl Direction {
    fn lock(&self) -> MutexGuard<'_, (Lane, VecDeque<Packet>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, bytes: &[u8], socket: &Arc<UdpSocket>, to: SocketAddr) {
        let mut state = self.lock();
        if let Some(due) = state.0.take(Instant::now(), bytes.len()) {
            state.1.push_back(Packet { due, bytes: bytes.to_vec(), socket: Arc::clone(socket), to });
            self.changed.notify_one();
        }
    }

    /// Sends each packet when it is due, until the line is closed. Packets of a lane never overtake each other.
    fn deliver(&self) {
        let mut state = self.lock();
        while !self.closed.load(Ordering::Relaxed) {
            let now = Instant::now();
            let wait = state.1.front().map_or(POLL, |p| p.due.saturating_duration_since(now));
            if wait > Duration::ZERO {
                state = self.changed.wait_timeout(state, wait.min(POLL)).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            if let Some(packet) = state.1.pop_front() {
                drop(state);
                // An error is a packet lost: the other end may be gone.
                let _ = packet.socket.send_to(&packet.bytes, packet.to);
                state = self.lock();
            }
        }
    }
}

fn receive(socket: &UdpSocket, closed: &AtomicBool, mut take: impl FnMut(&[u8], SocketAddr)) {
    let mut packet = vec![0; 1 << 16];
    while !closed.load(Ordering::Relaxed) {
        // Besides time running out, a listener that is gone answers with errors.
        if let Ok((length, from)) = socket.recv_from(&mut packet) {
            take(&packet[..length], from);
        }
    }
}

fn socket() -> io::Result<Arc<UdpSocket>> {
    use nix::sys::socket::{setsockopt, sockopt::RcvBuf};
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(POLL))?;
    // The kernel may give less.
    let _ = setsockopt(&socket, RcvBuf, &RECEIVE_BUFFER);
    Ok(Arc::new(socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(rate_bit_s: Option<f64>, round_trip_ms: f64) -> (Lane, Instant) {
        let start = Instant::now();
        (Lane { line: Line { rate_bit_s, round_trip_ms }, free: start }, start)
    }

    #[test]
    fn bytes_pass_at_the_rate() {
        for rate in [1e5, 1e6, 1e7, 1e8, 1e9] {
            let (mut lane, start) = lane(Some(rate), 40.0);
            let (mut now, mut last, mut bits) = (start, start, 0.0);
            // As a sender that waits when its queue is full.
            for _ in 0..2000 {
                match lane.take(now, 1200) {
                    Some(due) => {
                        last = due;
                        bits += 1228.0 * 8.0;
                    }
                    None => now += Duration::from_secs_f64(1228.0 * 8.0 / rate),
                }
            }
            let measured = bits / (last - start - Duration::from_millis(20)).as_secs_f64();
            assert!((measured / rate - 1.0).abs() < 0.01, "{measured} bit/s at {rate}");
        }
    }

    #[test]
    fn a_lone_packet_takes_half_a_round_trip() {
        let (mut lane, start) = lane(None, 100.0);
        assert_eq!(lane.take(start, 1200), Some(start + Duration::from_millis(50)));
        assert_eq!(lane.take(start, 1200), Some(start + Duration::from_millis(50)), "without a rate nobody waits");
    }

    #[test]
    fn what_finds_the_queue_full_is_lost() {
        let (mut lane, start) = lane(Some(1e6), 0.0);
        let taken = (0..1000).filter(|_| lane.take(start, 1222).is_some()).count();
        assert_eq!(taken, 101, "a second's worth of packets of 1,250 bytes, and the one that fills it");
        assert!(lane.take(start + Duration::from_secs(1), 1222).is_some());
    }

    #[test]
    fn both_listeners_of_a_party_answer_over_its_line() {
        let line = PartyLine::open(Line { rate_bit_s: Some(1e6), round_trip_ms: 2.0 }).unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for word in [b"coordinator", b"server 1234"] {
            let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
            listener.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let relay = line.relay(listener.local_addr().unwrap()).unwrap();
            let sent = Instant::now();
            client.send_to(word, relay).unwrap();
            let mut packet = [0; 64];
            let (length, from) = listener.recv_from(&mut packet).unwrap();
            listener.send_to(&packet[..length], from).unwrap();
            let (length, from) = client.recv_from(&mut packet).unwrap();
            assert_eq!((&packet[..length], from), (&word[..], relay));
            assert!(sent.elapsed() >= Duration::from_millis(2));
        }
    }
}
