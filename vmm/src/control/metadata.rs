//! The metadata service: the data by the API, and the service at the interfaces that have it.

use super::{Control, Denied};
use crate::mmds::{Metadata, MetadataError, Service};
use crate::virtio::slots::{DevicesConfig, Slots};

fn denied(e: MetadataError) -> Denied {
    match e {
        MetadataError::TooLarge => Denied::TooLarge(e.to_string()),
        _ => Denied::Failed(e.to_string()),
    }
}

/// Puts the service at the interfaces that `devices` names; before they work.
///
/// # Errors
/// An interface that is not there, or no random numbers.
pub(super) fn attach(service: &Service, devices: &DevicesConfig, slots: &Slots) -> Result<(), String> {
    let Some(config) = &devices.mmds else { return Ok(()) };
    config.validate(&devices.network_interfaces).map_err(|e| e.to_string())?;
    service.store().configure(config);
    for id in &config.network_interfaces {
        let interface = slots.interface(id).ok_or_else(|| format!("there is no network interface {id}"))?;
        let detour = service.detour(config).map_err(|e| format!("metadata service: {e}"))?;
        interface.lock().unwrap_or_else(|e| e.into_inner()).device_mut().set_detour(detour);
    }
    Ok(())
}

impl Control {
    /// The metadata service, for whoever fills it before there is an API.
    pub fn metadata(&self) -> &Service {
        &self.metadata
    }

    /// All of it.
    pub(super) fn get_metadata(&self) -> Option<Metadata> {
        self.metadata.store().get().cloned()
    }

    /// Replaces it.
    pub(super) fn put_metadata(&self, data: Metadata) -> Result<(), Denied> {
        self.metadata.store().put(data).map_err(denied)
    }

    /// Changes it.
    pub(super) fn patch_metadata(&self, patch: Metadata) -> Result<(), Denied> {
        self.metadata.store().patch(patch).map_err(denied)
    }
}
