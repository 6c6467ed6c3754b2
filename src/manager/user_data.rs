//! The user-data of a VM: kept with it, given to cloud-init's seeds and to the metadata service, gone with it.

use super::{Manager, ManagerError};
use crate::guestcfg::check_user_data;
use crate::model::VmId;

impl Manager {
    /// EC2 takes 16 KiB, Firecracker's MMDS 50 KiB; what is larger belongs where user-data can fetch it.
    pub const USER_DATA_LIMIT: usize = 256 * 1024;

    /// Durable when it returns. None removes it. What cloud-init would ignore is refused: no seed could be made with it.
    pub async fn set_user_data(&self, vm_id: VmId, content: Option<Vec<u8>>) -> Result<(), ManagerError> {
        let length = content.as_ref().map_or(0, Vec::len);
        if length > Self::USER_DATA_LIMIT {
            return Err(ManagerError::UserDataTooLong { length, limit: Self::USER_DATA_LIMIT });
        }
        if let Some(content) = &content {
            check_user_data(content).map_err(ManagerError::UserData)?;
        }
        let known = self.0.store.set_user_data(vm_id.clone(), content).await?;
        if known { Ok(()) } else { Err(ManagerError::NoVm { vm_id }) }
    }

    pub fn user_data(&self, vm_id: &VmId) -> Result<Option<Vec<u8>>, ManagerError> {
        Ok(self.0.store.user_data(vm_id)?)
    }
}
