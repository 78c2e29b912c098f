package api

// Connect is the body of POST /vms/{id}/connect.
type Connect struct {
	PublicKey       string `json:"public_key" maxLength:"16384" doc:"The public key to sign, in authorized_keys form: ed25519, ecdsa, or rsa of 2048 bits or more." example:"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me"`
	Username        string `json:"username,omitempty" maxLength:"64" doc:"The guest's user to log in as. Defaults to the label hatch.ssh.user, else root in img_minimal and debian elsewhere. The certificate is valid for any user of the guest."`
	AgentForwarding bool   `json:"agent_forwarding,omitempty" doc:"Whether the certificate permits agent forwarding."`
}

// Connection is the response to POST /vms/{id}/connect: what an SSH client needs.
type Connection struct {
	Certificate string   `json:"certificate" doc:"The certificate of the key, in the form of a file KEY-cert.pub."`
	Host        string   `json:"host" doc:"Where the SSH port is: the host name that this request was sent to."`
	Port        int      `json:"port" doc:"The VM's SSH port on that host."`
	Username    string   `json:"username" doc:"The guest's user to log in as."`
	ValidUntil  int64    `json:"valid_until" doc:"Until when logins can begin, in Unix seconds. Sessions may last longer."`
	HostKeys    []string `json:"host_keys" nullable:"false" doc:"The public keys of the guest's SSH server, in authorized_keys form."`
}
