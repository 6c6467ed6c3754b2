//! The resolvers' calls.

use super::CliError;
use super::client::Client;
use crate::proto::guestnet::v1;

impl Client {
    pub(super) async fn query_dns(
        &self,
        request: v1::QueryDnsRequest,
    ) -> Result<v1::QueryDnsResponse, CliError> {
        let answer = self.service.query_dns(request).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned())
    }

    pub(super) async fn dns_stats(
        &self,
        network_id: Option<String>,
        top: Option<u32>,
    ) -> Result<Vec<v1::DnsStats>, CliError> {
        let request = v1::GetDnsStatsRequest { network_id, top, ..Default::default() };
        let answer = self.service.get_dns_stats(request).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned().resolvers)
    }

    pub(super) async fn flush_dns_cache(&self, request: v1::FlushDnsCacheRequest) -> Result<u64, CliError> {
        let answer = self.service.flush_dns_cache(request).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned().flushed)
    }

    pub(super) async fn set_dns_record(
        &self,
        request: v1::SetDnsRecordRequest,
    ) -> Result<v1::DnsRecord, CliError> {
        let answer = self.service.set_dns_record(request).await;
        let record = answer.map_err(|error| self.failed(error))?.into_owned().record.into_option();
        record.ok_or_else(|| CliError::Answer("it names no record".into()))
    }

    pub(super) async fn dns_records(
        &self,
        network_id: Option<String>,
    ) -> Result<Vec<v1::DnsRecord>, CliError> {
        let request = v1::ListDnsRecordsRequest { network_id, ..Default::default() };
        let answer = self.service.list_dns_records(request).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned().records)
    }

    pub(super) async fn delete_dns_record(
        &self,
        request: v1::DeleteDnsRecordRequest,
    ) -> Result<u32, CliError> {
        let answer = self.service.delete_dns_record(request).await;
        Ok(answer.map_err(|error| self.failed(error))?.into_owned().deleted)
    }

    pub(super) async fn reload_dns(&self) -> Result<(), CliError> {
        let answer = self.service.reload_dns(v1::ReloadDnsRequest::default()).await;
        answer.map(drop).map_err(|error| self.failed(error))
    }
}
