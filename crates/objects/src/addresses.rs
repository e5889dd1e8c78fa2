//! Which network addresses a user's URL may lead to.
//!
//! Every address belongs to exactly one [`Class`]; only `Public` is reachable unless the operator allows more. IPv6
//! forms that carry an IPv4 address (mapped, compatible, NAT64, 6to4) are judged by the address they carry.
//! Source: IANA special-purpose address registries (RFC 6890, RFC 8190) and the documented addresses of the clouds'
//! metadata services.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// What kind of network an address belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Reachable for everybody.
    Public,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// RFC 1918, carrier-grade NAT, IPv6 unique local.
    Private,
    /// `169.254.0.0/16`, `fe80::/10`.
    LinkLocal,
    /// A cloud's instance metadata service: it hands out credentials to whoever asks.
    Metadata,
    /// Unspecified, multicast, broadcast, documentation, benchmarking, reserved, tunnels: never a server's address.
    Reserved,
}

impl Class {
    /// The word used in settings and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Public => "public",
            Class::Loopback => "loopback",
            Class::Private => "private",
            Class::LinkLocal => "link-local",
            Class::Metadata => "metadata",
            Class::Reserved => "reserved",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The class of an address.
#[must_use]
pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(v4) => classify_v4(v4),
        IpAddr::V6(v6) => classify_v6(v6),
    }
}

/// Metadata services outside the link-local block: Alibaba Cloud, Oracle's and Azure's fixed service address.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(169, 254, 169, 253),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
];
/// AWS's IPv6 metadata, its time and DNS neighbours, and Google's.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

fn classify_v4(address: Ipv4Addr) -> Class {
    if METADATA_V4.contains(&address) {
        return Class::Metadata;
    }
    match address.octets() {
        [127, ..] => Class::Loopback,
        [10, ..] | [192, 168, ..] => Class::Private,
        [172, b, ..] if (16..32).contains(&b) => Class::Private,
        [100, b, ..] if (64..128).contains(&b) => Class::Private,
        [169, 254, ..] => Class::LinkLocal,
        [0 | 224..=255, ..] | [192, 0, 0 | 2, _] | [192, 88, 99, _] => Class::Reserved,
        [198, 18 | 19, ..] | [198, 51, 100, _] | [203, 0, 113, _] => Class::Reserved,
        _ => Class::Public,
    }
}

fn classify_v6(address: Ipv6Addr) -> Class {
    if METADATA_V6.contains(&address) {
        return Class::Metadata;
    }
    if address == Ipv6Addr::LOCALHOST {
        return Class::Loopback;
    }
    let s = address.segments();
    let carried = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        classify_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // mapped ::ffff:a.b.c.d, translated ::ffff:0:a.b.c.d, compatible ::a.b.c.d (which takes :: and reserved with it)
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => carried(high, low),
        [0, 0, 0, 0, 0, 0, high, low] => not_public(carried(high, low)),
        // NAT64's well-known prefix
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => carried(high, low),
        // 6to4 carries it behind the prefix; an ISATAP identifier in the last half
        [0x2002, high, low, ..] => carried(high, low),
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] => not_public(carried(high, low)),
        [first, ..] if first & 0xfe00 == 0xfc00 => Class::Private,
        [first, ..] if first & 0xffc0 == 0xfe80 => Class::LinkLocal,
        [first, ..] if first & 0xffc0 == 0xfec0 => Class::Private,
        // Teredo and the other 2001::/23 protocol blocks, documentation
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => Class::Reserved,
        [0x3fff, second, ..] if second < 0x1000 => Class::Reserved,
        [first, ..] if first & 0xe000 == 0x2000 => Class::Public,
        _ => Class::Reserved,
    }
}

/// Forms that no public server is reached by: what would be public is reserved.
fn not_public(class: Class) -> Class {
    if class == Class::Public { Class::Reserved } else { class }
}

/// What the operator allows beside public addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    classes: Vec<Class>,
    networks: Vec<IpNet>,
}

/// A word of the setting that names neither a class nor a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is neither an address class (loopback, private, link-local) nor a network such as 10.1.0.0/16 or fd12::/32"
)]
pub struct BadEntry(String);

impl Allowed {
    /// Reads the setting: classes (`loopback`, `private`, `link-local`) and networks in CIDR form. Metadata services
    /// and reserved addresses are reached only through a network that names them.
    ///
    /// # Errors
    /// [`BadEntry`] for the first word that is neither.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Allowed, BadEntry> {
        let mut allowed = Allowed::default();
        for entry in entries {
            let entry = entry.trim();
            match entry {
                "loopback" => allowed.classes.push(Class::Loopback),
                "private" => allowed.classes.push(Class::Private),
                "link-local" => allowed.classes.push(Class::LinkLocal),
                _ => allowed.networks.push(network(entry).ok_or_else(|| BadEntry(entry.to_owned()))?),
            }
        }
        Ok(allowed)
    }

    /// Whether an address may be reached.
    ///
    /// # Errors
    /// Its class, when it may not.
    pub fn check(&self, address: IpAddr) -> Result<(), Class> {
        let class = classify(address);
        let plain = address.to_canonical();
        let allowed = class == Class::Public
            || self.classes.contains(&class)
            || self.networks.iter().any(|network| network.contains(&plain) || network.contains(&address));
        if allowed { Ok(()) } else { Err(class) }
    }
}

fn network(entry: &str) -> Option<IpNet> {
    IpNet::from_str(entry).ok().or_else(|| IpAddr::from_str(entry).ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str) -> Class {
        classify(text.parse().unwrap())
    }

    #[test]
    fn every_special_block_has_its_class() {
        let table: &[(Class, &[&str])] = &[
            (
                Class::Public,
                &["1.1.1.1", "8.8.8.8", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "192.0.1.1"],
            ),
            (
                Class::Public,
                &[
                    "2606:4700::1111",
                    "2a00:1450:4001:82b::200e",
                    "::ffff:8.8.8.8",
                    "2002:808:808::1",
                    "64:ff9b::808:808",
                ],
            ),
            (
                Class::Loopback,
                &[
                    "127.0.0.1",
                    "127.255.255.254",
                    "::1",
                    "::ffff:127.0.0.1",
                    "64:ff9b::7f00:1",
                    "2002:7f00:1::",
                    "::127.0.0.1",
                    "::ffff:0:127.0.0.1",
                ],
            ),
            (
                Class::Private,
                &[
                    "10.0.0.1",
                    "172.16.0.1",
                    "172.31.255.255",
                    "192.168.1.1",
                    "100.64.0.1",
                    "fc00::1",
                    "fd12:3456::1",
                    "fec0::1",
                    "::ffff:10.0.0.1",
                    "2002:a00:1::",
                    "fe80:0:0:1:0:5efe:a00:1",
                ],
            ),
            (Class::LinkLocal, &["169.254.1.1", "fe80::1", "febf::1", "::ffff:169.254.1.1"]),
            (
                Class::Metadata,
                &[
                    "169.254.169.254",
                    "::ffff:169.254.169.254",
                    "fd00:ec2::254",
                    "100.100.100.200",
                    "168.63.129.16",
                    "169.254.170.2",
                    "fd20:ce::254",
                    "64:ff9b::a9fe:a9fe",
                ],
            ),
            (
                Class::Reserved,
                &[
                    "0.0.0.0",
                    "0.1.2.3",
                    "224.0.0.1",
                    "239.1.1.1",
                    "240.0.0.1",
                    "255.255.255.255",
                    "192.0.0.8",
                    "192.0.2.1",
                    "198.18.0.1",
                    "198.51.100.7",
                    "203.0.113.9",
                    "192.88.99.1",
                ],
            ),
            (
                Class::Reserved,
                &[
                    "::",
                    "::8.8.8.8",
                    "ff02::1",
                    "2001::1",
                    "2001:db8::1",
                    "3fff::1",
                    "100::1",
                    "64:ff9b:1::1",
                    "5f00::1",
                    "4000::1",
                ],
            ),
        ];
        for (want, addresses) in table {
            for address in *addresses {
                assert_eq!(class(address), *want, "{address}");
            }
        }
    }

    #[test]
    fn only_what_the_operator_names_is_allowed() {
        let allowed = Allowed::parse(["loopback", "10.1.0.0/16", "192.168.7.9"]).unwrap();
        let check = |text: &str| allowed.check(text.parse().unwrap());
        for good in ["127.0.0.1", "::1", "10.1.2.3", "::ffff:10.1.2.3", "192.168.7.9", "9.9.9.9"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(check("10.2.0.1"), Err(Class::Private));
        assert_eq!(check("192.168.7.10"), Err(Class::Private));
        assert_eq!(check("169.254.169.254"), Err(Class::Metadata));
        let private = Allowed::parse(["private", "link-local"]).unwrap();
        assert_eq!(private.check("169.254.169.254".parse().unwrap()), Err(Class::Metadata));
        assert_eq!(
            Allowed::parse(["169.254.169.254"]).unwrap().check("169.254.169.254".parse().unwrap()),
            Ok(())
        );
        assert_eq!(Allowed::parse(["lan"]), Err(BadEntry("lan".to_owned())));
    }
}
