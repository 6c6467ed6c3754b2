//! Reservations over the API: wire types to the model and back, the codes of what can go wrong.

use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use connectrpc::{ConnectError, ErrorCode};

use super::errors::{internal, refusal_at, store_facts};
use super::paging;
use super::wire::{self, FieldError};
use crate::model::{DhcpOptions, Invalid, Mac, OptionBytes, RawCode};
use crate::proto::guestnet::v1;
use crate::registry::Reserved;
use crate::reservations::{Asked, Key, ReservationError, Reservations};

/// Reservations of one call at most.
const MOST: usize = 20_000;

pub(super) async fn add(
    reservations: &Reservations,
    request: v1::AddReservationsRequest,
) -> Result<v1::AddReservationsResponse, ConnectError> {
    if !(1..=MOST).contains(&request.reservations.len()) {
        let invalid = Invalid::new(request.reservations.len(), "1 to 20000 reservations");
        return Err(FieldError::new("reservations", invalid).into());
    }
    let asked: Result<Vec<Asked>, FieldError> = request.reservations.iter().map(asked).collect();
    // To its end, even if the caller goes away: what is durable is to be live too.
    let (reservations, asked) = (reservations.clone(), asked?);
    let done = tokio::spawn(async move {
        let added = reservations.add(asked).await?;
        tracing::info!(count = added.len(), "reservations added");
        let added = added.iter().map(|reserved| reservation(&reservations, reserved)).collect();
        Ok::<Vec<v1::Reservation>, ReservationError>(added)
    });
    let done = done.await.map_err(|error| internal("BROKEN_OFF", error))?;
    let reservations = done.map_err(status)?;
    Ok(v1::AddReservationsResponse { reservations, ..Default::default() })
}

pub(super) fn list(
    reservations: &Reservations,
    request: &v1::ListReservationsRequestView<'_>,
) -> Result<v1::ListReservationsResponse, ConnectError> {
    let network = wire::network_id(request.network_id)?;
    let networks = reservations.networks();
    let after = paging::after(request.page_token, |token| paging::read_address(&networks, token))?;
    let all = reservations.list(network.as_ref()).map_err(status)?;
    let place = |of: &Arc<Reserved>| paging::address_of(&networks, &of.network.name, of.guest.address);
    let token = |of: &Arc<Reserved>| paging::address_token(&of.network.name, of.guest.address);
    let page = paging::page(all, place, token, after, request.page_size);
    Ok(v1::ListReservationsResponse {
        reservations: page.items.iter().map(|reserved| reservation(reservations, reserved)).collect(),
        next_page_token: page.next_page_token,
        total_size: page.total_size,
        ..Default::default()
    })
}

pub(super) async fn delete(
    reservations: &Reservations,
    request: v1::DeleteReservationRequest,
) -> Result<v1::DeleteReservationResponse, ConnectError> {
    use v1::delete_reservation_request::Key as Wire;
    let network = wire::network_id(request.network_id.as_deref())?;
    let key = match &request.key {
        Some(Wire::MacAddress(text)) => Key::Mac(wire::parse("mac_address", text)?),
        Some(Wire::IpAddress(text)) => Key::Address(wire::parse_address("ip_address", text)?),
        None => return Err(FieldError::new("key", Invalid::new("", "mac_address or ip_address")).into()),
    };
    let reservations = reservations.clone();
    let done = tokio::spawn(async move { reservations.delete(network.as_ref(), key).await });
    let there = done.await.map_err(|error| internal("BROKEN_OFF", error))?.map_err(status)?;
    tracing::info!(there, "reservation deleted");
    Ok(v1::DeleteReservationResponse::default())
}

fn asked(new: &v1::NewReservation) -> Result<Asked, FieldError> {
    Ok(Asked {
        network: wire::network_id(new.network_id.as_deref())?,
        mac: wire::parse::<Mac>("mac_address", &new.mac_address)?,
        address: new.ip_address.as_deref().map(|text| wire::parse_address("ip_address", text)).transpose()?,
        hostname: wire::parse_set("hostname", new.hostname.as_deref())?,
        options: new.dhcp_options.as_option().map(options).transpose()?,
    })
}

fn reservation(reservations: &Reservations, reserved: &Reserved) -> v1::Reservation {
    v1::Reservation {
        network_id: reserved.network.name.to_string(),
        mac_address: reserved.guest.mac.to_string(),
        ip_address: reserved.guest.address.to_string(),
        hostname: reserved.guest.hostname.to_string(),
        dhcp_options: wire_options(&reserved.options).into(),
        configured: reservations.is_configured(reserved),
        ..Default::default()
    }
}

/// Options as a caller gives them.
pub fn options(wire: &v1::DhcpOptions) -> Result<DhcpOptions, FieldError> {
    fn all<T: FromStr<Err = Invalid>>(field: &'static str, texts: &[String]) -> Result<Vec<T>, FieldError> {
        texts.iter().map(|text| wire::parse(field, text)).collect()
    }
    let bytes = |field, bytes: &Option<Vec<u8>>| -> Result<Option<OptionBytes>, FieldError> {
        let checked = bytes.clone().filter(|bytes| !bytes.is_empty()).map(OptionBytes::try_from).transpose();
        checked.map_err(|invalid| FieldError::new(field, invalid))
    };
    let text = |field, text: &Option<String>| {
        wire::parse_set(field, text.as_deref().filter(|text| !text.is_empty()))
    };
    let address = |field, text: &str| wire::parse_address(field, text);
    let raw = |option: &v1::RawDhcpOption| -> Result<(RawCode, OptionBytes), FieldError> {
        let code =
            u8::try_from(option.code).map_err(|_| Invalid::new(option.code, "an option code of 1 to 254"));
        let code = code.and_then(RawCode::try_from);
        let data = OptionBytes::try_from(option.data.clone());
        let wrong = |invalid| FieldError::new("dhcp_options.raw", invalid);
        Ok((code.map_err(wrong)?, data.map_err(wrong)?))
    };
    let ntp_servers: Result<Vec<Ipv4Addr>, FieldError> =
        wire.ntp_servers.iter().map(|text| address("dhcp_options.ntp_servers", text)).collect();
    Ok(DhcpOptions {
        ntp_servers: ntp_servers?,
        tftp_server_name: text("dhcp_options.tftp_server_name", &wire.tftp_server_name)?,
        bootfile_name: text("dhcp_options.bootfile_name", &wire.bootfile_name)?,
        next_server: wire
            .next_server
            .as_deref()
            .map(|text| address("dhcp_options.next_server", text))
            .transpose()?,
        captive_portal: text("dhcp_options.captive_portal", &wire.captive_portal)?,
        domain_search: all("dhcp_options.domain_search", &wire.domain_search)?,
        static_routes: all("dhcp_options.static_routes", &wire.static_routes)?,
        ipv6_only_seconds: wire.ipv6_only_seconds,
        vendor_specific: bytes("dhcp_options.vendor_specific", &wire.vendor_specific)?,
        vendor_identifying: bytes("dhcp_options.vendor_identifying", &wire.vendor_identifying)?,
        raw: wire.raw.iter().map(raw).collect::<Result<_, _>>()?,
    })
}

/// The same, back.
pub fn wire_options(options: &DhcpOptions) -> v1::DhcpOptions {
    fn texts<T: ToString>(values: &[T]) -> Vec<String> {
        values.iter().map(ToString::to_string).collect()
    }
    let bytes = |bytes: &Option<OptionBytes>| bytes.as_ref().map(|bytes| bytes.as_slice().to_vec());
    v1::DhcpOptions {
        ntp_servers: texts(&options.ntp_servers),
        tftp_server_name: options.tftp_server_name.as_ref().map(ToString::to_string),
        bootfile_name: options.bootfile_name.as_ref().map(ToString::to_string),
        next_server: options.next_server.map(|address| address.to_string()),
        captive_portal: options.captive_portal.as_ref().map(ToString::to_string),
        domain_search: texts(&options.domain_search),
        static_routes: texts(&options.static_routes),
        ipv6_only_seconds: options.ipv6_only_seconds,
        vendor_specific: bytes(&options.vendor_specific),
        vendor_identifying: bytes(&options.vendor_identifying),
        raw: options
            .raw
            .iter()
            .map(|(code, bytes)| v1::RawDhcpOption {
                code: code.code().into(),
                data: bytes.as_slice().to_vec(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn status(error: ReservationError) -> ConnectError {
    use ErrorCode::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted};
    let of_mac = |mac: &Mac| vec![("mac_address", mac.to_string())];
    let (code, reason, field, metadata) = match &error {
        ReservationError::NoExternal => (FailedPrecondition, "NO_EXTERNAL_NETWORK", None, vec![]),
        ReservationError::UnknownNetwork(name, _) => {
            (NotFound, "UNKNOWN_NETWORK", Some("network_id"), vec![("network_id", name.to_string())])
        }
        ReservationError::Differs { mac, field, has, asked, .. } => {
            let values = [("field", (*field).to_owned()), ("has", has.clone()), ("asked", asked.clone())];
            let metadata = of_mac(mac).into_iter().chain(values).collect();
            (AlreadyExists, "RESERVATION_DIFFERS", Some(*field), metadata)
        }
        ReservationError::AddressTaken { address, by, .. } => {
            let metadata = vec![("ip_address", address.to_string()), ("taken_by", by.to_string())];
            (AlreadyExists, "ADDRESS_TAKEN", Some("ip_address"), metadata)
        }
        ReservationError::AddressUnusable { mac, address, .. } => {
            let metadata = of_mac(mac).into_iter().chain([("ip_address", address.to_string())]).collect();
            (InvalidArgument, "ADDRESS_UNUSABLE", Some("ip_address"), metadata)
        }
        ReservationError::Twice { mac } => (InvalidArgument, "ASKED_TWICE", Some("mac_address"), of_mac(mac)),
        ReservationError::Full { network, .. } => {
            (ResourceExhausted, "SUBNET_FULL", None, vec![("network_id", network.to_string())])
        }
        ReservationError::Configured { mac, .. } => (FailedPrecondition, "CONFIGURED", None, of_mac(mac)),
        ReservationError::Store(error) => {
            let (code, reason) = store_facts(error);
            (code, reason, None, vec![])
        }
    };
    refusal_at(code, reason, field, metadata, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_the_wire() {
        let model: DhcpOptions = toml::from_str(
            r#"
            ntp_servers = ["10.100.0.1"]
            tftp_server_name = "tftp"
            bootfile_name = "vmlinuz"
            next_server = "10.100.0.7"
            captive_portal = "http://10.100.0.1/"
            domain_search = ["corp.example"]
            static_routes = ["10.1.0.0/16 via 10.100.0.9"]
            ipv6_only_seconds = 300
            vendor_specific = "0102"
            vendor_identifying = "000001370103"
            raw = { 252 = "00" }
        "#,
        )
        .unwrap();
        assert_eq!(options(&wire_options(&model)).unwrap(), model);
        assert_eq!(options(&v1::DhcpOptions::default()).unwrap(), DhcpOptions::default());
    }

    #[test]
    fn an_option_that_does_not_fit_is_refused_by_its_name() {
        let raw = |code| v1::RawDhcpOption { code, ..Default::default() };
        for (wire, field) in [
            (v1::DhcpOptions { ntp_servers: vec!["ntp".into()], ..Default::default() }, "ntp_servers"),
            (v1::DhcpOptions { raw: vec![raw(3)], ..Default::default() }, "raw"),
            (v1::DhcpOptions { raw: vec![raw(300)], ..Default::default() }, "raw"),
            (
                v1::DhcpOptions { vendor_specific: Some(vec![0; 1021]), ..Default::default() },
                "vendor_specific",
            ),
        ] {
            let error = options(&wire).unwrap_err();
            assert_eq!(error.field, format!("dhcp_options.{field}"));
        }
    }
}
