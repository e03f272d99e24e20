# The hosts' keys are registered.
foreach ($name in $hosts) {
    Invoke-Command -ComputerName $name { Set-HgsClientHostKey; Get-HgsClientHostKey -Path 'C:\temp\hostkey.cer' }
    Invoke-Command -ComputerName HGS01 {
        $name = $using:name
        Copy-Item "\\$name\C`$\temp\hostkey.cer" "C:\temp\$name.cer"
        Add-HgsAttestationHostKey -Name $name -Path "C:\temp\$name.cer" | Out-Null
    }
}
