//! How a role uses its network.

use super::QuicOptions;
use quinn::VarInt;
use serde::{Deserialize, Serialize};
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;
use tracing::debug;

/// Congestion controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Congestion {
    /// The default of quinn: best on links without random loss.
    #[default]
    Cubic,
    /// Holds its rate under random loss, at the price of overflowing short queues.
    Bbr,
}

/// How a role uses its network. Nothing here changes results.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TransportTuning {
    /// Congestion controller.
    pub congestion: Congestion,
    /// Largest UDP payload to try, in bytes. The path is probed, so a value above what it carries costs a few probes
    /// only. The internet carries 1,452, networks with jumbo frames 8,900, loopback 60,000. Larger packets take less
    /// processor time for the same bytes.
    pub mtu_max: u16,
    /// Bandwidth-delay product to allow for, in bytes: the windows are never below it. The default covers 100 Mbit/s at
    /// 100 ms and 1 Gbit/s at 10 ms.
    pub window: u32,
    /// Congestion window at the start, in bytes. It hardly grows later: messages end before it is full. What is sent at
    /// once over a long way is paced by it; `docs/wan.md` shows what it is worth.
    pub initial_window: u32,
    /// A peer that is silent for so long is gone. Keep-alives are sent four times as often, and once a second at least.
    pub idle_timeout_s: f32,
}

/// The system takes at most 64 KiB at a time, and quinn makes up to ten packets of them. Larger packets go one by one.
const SEGMENTED_MTU_MAX: u16 = 6500;
/// How long a peer may wait with an acknowledgement.
const MAX_ACK_DELAY: Duration = Duration::from_millis(2);
/// Whether a peer that comes a second time is still there the first time is known after two of these.
const KEEP_ALIVE_MAX: Duration = Duration::from_secs(1);

impl Default for TransportTuning {
    fn default() -> Self {
        Self {
            congestion: Congestion::Cubic,
            mtu_max: 1452,
            window: 1 << 21,
            initial_window: 512 << 10,
            idle_timeout_s: 20.0,
        }
    }
}

impl TransportTuning {
    fn idle_timeout(&self) -> Duration {
        Duration::from_secs_f32(self.idle_timeout_s.clamp(0.5, 600.0))
    }

    pub(super) fn keep_alive(&self) -> Duration {
        (self.idle_timeout() / 4).min(KEEP_ALIVE_MAX)
    }
}

pub(super) fn transport_config(options: &QuicOptions) -> quinn::TransportConfig {
    let tuning = options.tuning;
    let mut config = quinn::TransportConfig::default();
    // At most 600 s, so this is exact.
    let idle_ms = u32::try_from(tuning.idle_timeout().as_millis()).unwrap_or(u32::MAX);
    // One session stream and one relayed stream for each other party.
    let streams = u32::try_from(options.expect.len().max(options.pins.len()) + 1).unwrap_or(u32::MAX);
    config
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(VarInt::from(0_u32))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(VarInt::from(idle_ms).into()))
        .enable_segmentation_offload(tuning.mtu_max <= SEGMENTED_MTU_MAX)
        .keep_alive_interval(Some(tuning.keep_alive()))
        .stream_receive_window(tuning.window.max(1_250_000).into())
        .send_window(u64::from(tuning.window.max(1_250_000)) * 8)
        .ack_frequency_config(Some({
            // Messages end and then both sides wait: a lost tail is noticed only after the peer's longest delay of an
            // acknowledgement, which is 25 ms unless agreed otherwise.
            let mut acks = quinn::AckFrequencyConfig::default();
            acks.max_ack_delay(Some(MAX_ACK_DELAY));
            acks
        }))
        .mtu_discovery_config(Some({
            let mut discovery = quinn::MtuDiscoveryConfig::default();
            discovery.upper_bound(tuning.mtu_max.max(1200));
            discovery
        }));
    match tuning.congestion {
        Congestion::Cubic => {
            let mut cubic = quinn::congestion::CubicConfig::default();
            cubic.initial_window(tuning.initial_window.into());
            config.congestion_controller_factory(Arc::new(cubic));
        }
        Congestion::Bbr => {
            let mut bbr = quinn::congestion::BbrConfig::default();
            bbr.initial_window(tuning.initial_window.into());
            config.congestion_controller_factory(Arc::new(bbr));
        }
    }
    config
}

/// Asks for room for a few batches' worth of packets. With the usual 208 KiB a burst from several parties overflows the
/// socket even on loopback, and the tail of a message then waits for a retransmission timer.
pub(super) fn enlarge_buffers(socket: &UdpSocket) {
    use nix::sys::socket::{setsockopt, sockopt};
    const WANTED: usize = 4 << 20;
    let receive = setsockopt(socket, sockopt::RcvBuf, &WANTED);
    let send = setsockopt(socket, sockopt::SndBuf, &WANTED);
    // The system caps what it grants without an error; nothing but speed depends on it.
    if let Err(e) = receive.and(send) {
        debug!("UDP buffers stay as they are: {e}");
    }
}
