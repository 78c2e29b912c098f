package route

import (
	"net/netip"
	"time"

	"github.com/hatchvm/hatch/internal/access"
)

// Target is where a host name leads, and who may follow it.
type Target struct {
	VMID, OwnerID   string
	RouteID         string // "" for a name that no route has
	Port            int
	AutoWake        bool
	Auth            Auth
	Allowed         []netip.Prefix // nil: all
	Upstream        Upstream
	ResponseTimeout time.Duration // for the head of an answer; 0: no limit

	generation int64 // of the VM's signed links
}

// Implicit is whether names without a route, PORT-VM, lead to a VM.
type Implicit string

// The choices of a VM's owner. Such names always need credentials.
const (
	ServersChoice Implicit = "" // as Config.Implicit says
	ImplicitOn    Implicit = "on"
	ImplicitOff   Implicit = "off"
)

// allowed reports whether such names lead to the VM on a server with a setting.
func (i Implicit) allowed(server bool) bool {
	return i == ImplicitOn || i == ServersChoice && server
}

// Mode says what a caller has to show.
type Mode string

// The modes.
const (
	Public Mode = "public" // nothing
	Key    Mode = "key"    // an API key of the VM's owner, or a signed link
	Basic  Mode = "basic"  // the route's user name and password, or a signed link
)

// Auth is who may follow a route.
type Auth struct {
	Mode     Mode   `json:"mode"`
	Username string `json:"username,omitempty"` // "" unless Mode is Basic
	Hash     []byte `json:"hash,omitempty"`     // of the password, by bcrypt; nil unless Mode is Basic
}

// Upstream is the protocol that a guest's port is spoken to with.
type Upstream string

// The protocols.
const (
	HTTP1 Upstream = "http1"
	H2C   Upstream = "h2c" // HTTP/2 without TLS, as gRPC servers speak it
)

// Credentials are what a caller shows, each "" if it does not.
type Credentials struct {
	Key                string // from X-API-Key, X-Access-Token or Authorization: Bearer
	Username, Password string // from Authorization: Basic
	Token              string // of a signed link, from the query field hatch_token
	Cookie             string // from the cookie hatch_access

	From netip.Addr // the client's address
}

// Names of the query field and of the cookie of signed links.
const (
	TokenParam = "hatch_token"
	CookieName = "hatch_access"
)

// Grant is what follows from credentials that were accepted.
type Grant struct {
	// Cookie is the value of a cookie to set before the caller is sent to the same URL
	// without the token; "" if there is nothing to set.
	Cookie string
	Until  time.Time         // when the link ends, and its cookie; zero without a link
	Caller *access.Principal // who has authenticated by a key; nil otherwise

	vmID, routeID string // of the target
	byLink        bool   // by a signed link, or its cookie
}
