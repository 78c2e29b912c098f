package api

// Values of a route's fields.
const (
	AuthPublic     = "public"
	AuthKey        = "key"
	AuthBasic      = "basic"
	UpstreamHTTP1  = "http1"
	UpstreamH2C    = "h2c"
	DomainPending  = "pending"
	DomainVerified = "verified"
	DomainUnproven = "unproven"
)

// CreateRoute is the body of POST /vms/{id}/routes, and a route of a new VM or of a
// template.
type CreateRoute struct {
	Subdomain    string         `json:"subdomain,omitempty" maxLength:"63" doc:"Label below the proxy's domain: lower-case letters, digits and hyphens. Random by default. Unique among all routes." example:"web"`
	Domain       string         `json:"domain,omitempty" maxLength:"253" doc:"Host name of your own, instead of a subdomain. It is served once it is verified." example:"www.example.org"`
	TargetPort   int            `json:"target_port" minimum:"1" maximum:"65535" doc:"Port of the guest that requests go to."`
	AutoWake     *bool          `json:"auto_wake,omitempty" doc:"Whether a request wakes a sleeping VM. Defaults to true."`
	Auth         *RouteAuth     `json:"auth,omitempty" doc:"Who may send requests. Defaults to public."`
	AllowedCIDRs []string       `json:"allowed_cidrs,omitempty" maxItems:"32" nullable:"false" doc:"Networks that requests are accepted from. Defaults to all."`
	Timeouts     *RouteTimeouts `json:"timeouts,omitempty" doc:"How long the guest may take."`
	Upstream     string         `json:"upstream,omitempty" enum:"http1,h2c" doc:"Protocol of the guest's port: http1 (default), or h2c, HTTP/2 without TLS, for gRPC."`
}

// RouteAuth says who may send requests through a route. Answers have no Password.
type RouteAuth struct {
	Mode     string `json:"mode" enum:"public,key,basic" doc:"public: all. key: callers with an API key of the VM's owner, or a signed link. basic: callers with the user name and the password, or a signed link."`
	Username string `json:"username,omitempty" maxLength:"64" doc:"For mode basic."`
	Password string `json:"password,omitempty" maxLength:"72" doc:"For mode basic, 8 to 72 bytes. Only in requests; a hash of it is stored."`
}

// RouteTimeouts says how long a guest may take.
type RouteTimeouts struct {
	ResponseHeaderSeconds int `json:"response_header_seconds,omitempty" minimum:"0" maximum:"3600" doc:"For the head of an answer. 0, the default, means no limit."`
}

// UpdateRoute is the body of PATCH /routes/{id}, a JSON merge patch: absent fields stay,
// null removes one.
type UpdateRoute struct {
	Subdomain    *string        `json:"subdomain,omitempty" maxLength:"63"`
	TargetPort   *int           `json:"target_port,omitempty" minimum:"1" maximum:"65535"`
	AutoWake     *bool          `json:"auto_wake,omitempty"`
	Auth         *RouteAuth     `json:"auth,omitempty" doc:"A password that is absent stays."`
	AllowedCIDRs []string       `json:"allowed_cidrs,omitempty" maxItems:"32" nullable:"false" doc:"Replaces all."`
	Timeouts     *RouteTimeouts `json:"timeouts,omitempty"`
	Upstream     *string        `json:"upstream,omitempty" enum:"http1,h2c"`
}

// Route is a host name that leads to a port of a VM.
type Route struct {
	ID           string              `json:"id" example:"rt_abc123def456"`
	VMID         string              `json:"vm_id"`
	URL          string              `json:"url" doc:"How clients of the proxy reach the port." example:"http://web.localhost:9090"`
	Subdomain    string              `json:"subdomain,omitempty" doc:"Absent with a domain."`
	Domain       string              `json:"domain,omitempty" doc:"Absent with a subdomain."`
	DomainState  string              `json:"domain_state,omitempty" enum:"pending,verified,unproven" doc:"pending: the domain is not served, because it is not proved. unproven: it is served, but its TXT record was not there at the last daily check; after three it is pending. Absent with a subdomain."`
	Verification *DomainVerification `json:"verification,omitempty" doc:"How to prove the domain, while it is pending or unproven."`
	TargetPort   int                 `json:"target_port" doc:"Port of the guest that requests go to."`
	AutoWake     bool                `json:"auto_wake" doc:"Whether a request wakes a sleeping VM."`
	Auth         RouteAuth           `json:"auth" doc:"Who may send requests."`
	AllowedCIDRs []string            `json:"allowed_cidrs,omitempty" nullable:"false" doc:"Networks that requests are accepted from; absent for all."`
	Timeouts     *RouteTimeouts      `json:"timeouts,omitempty" doc:"How long the guest may take; absent without limits."`
	Upstream     string              `json:"upstream" enum:"http1,h2c" doc:"Protocol of the guest's port."`
	CreatedAt    Time                `json:"created_at"`
	UpdatedAt    Time                `json:"updated_at"`
}

// DomainVerification is the DNS record that proves a domain.
type DomainVerification struct {
	Type  string `json:"type" enum:"TXT" doc:"Type of the record."`
	Name  string `json:"name" doc:"Name of the record." example:"_hatch.www.example.org"`
	Value string `json:"value" doc:"What the record has to hold; it may hold more in other strings."`
}

// ShareVM is the body of POST /vms/{id}/share.
type ShareVM struct {
	Port             int `json:"port" minimum:"1" maximum:"65535" doc:"Port of the guest that the link leads to."`
	ExpiresInSeconds int `json:"expires_in_seconds,omitempty" minimum:"60" maximum:"2592000" doc:"How long the link is valid. Defaults to 3600, one hour."`
}

// Share is a signed link: each browser that opens it reaches one port of one VM until it expires.
type Share struct {
	URL       string `json:"url"`
	ExpiresAt Time   `json:"expires_at"`
}
