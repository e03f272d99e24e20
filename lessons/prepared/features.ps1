# The hosts have their features.
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name { Install-WindowsFeature -Name Hyper-V, HostGuardian -IncludeManagementTools | Out-Null }
}
