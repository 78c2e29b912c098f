// Package config reads hatchd's configuration from flags, the environment and a file, in
// this order of precedence, over built-in defaults.
//
// One table (settings.go) describes all settings. Parsing, `hatchd config`, the test of
// the sample file and the reference page use it. Only the daemon imports this package and
// passes the values to others. Start at [Load] and [Config].
package config

import (
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/internal/network"
)

// Config has the values of all settings, validated. [Load] returns it.
type Config struct {
	HTTPAddr           string   // host:port; an empty host means every interface
	HTTPTLSCert        string   // absolute; "" means that there is no TLS
	HTTPTLSKey         string   // absolute; "" exactly if HTTPTLSCert is
	HTTPTLSClientCA    string   // absolute; "" means that clients need no certificate
	Socket             Socket   // of the API
	OIDC               OIDC     // of tokens
	HTTPMaxConns       int      // ≥ 16
	HTTPMaxClientConns int      // of one client of the network; ≥ 1
	HTTPBodyMiB        int64    // of the bodies of all requests; ≥ 4
	MemoryLimitMiB     int64    // of hatchd itself; 0 means that hatchd chooses
	CORSOrigins        []string // whose pages may call the API; "*" alone means all, empty none

	DataDir             string // absolute
	TrustDataDirParents bool   // other users may change the directories above
	DatabaseURL         string // postgres://…, or an absolute path of an SQLite file
	SecretsKeyFile      string // absolute; the default is a file in DataDir
	APIKey              string // "" means that hatchd generates one; a secret

	DefaultKernelPath string // absolute; "" means none
	DefaultRootfsPath string // absolute; "" exactly if DefaultKernelPath is
	DefaultVCPU       int    // ≥ 1
	DefaultMemMiB     int    // ≥ 64
	DefaultDiskMiB    int    // ≥ 64
	DefaultBootArgs   string
	ImageDirs         []string // absolute and clean; clients may register the files in them; empty means none
	DebianMirrors     []string // URLs: of Debian's archive, and of its security archive; empty means the host's

	Network            network.Network
	EgressAllowPrivate []netip.Prefix // private networks that guests may reach
	SSHPortMin         int
	SSHPortMax         int            // ≥ SSHPortMin
	SSHAllowed         []netip.Prefix // networks that may connect to VMs' SSH ports; empty means none
	SSHMaxConns        int            // to all SSH ports; ≥ 16
	SSHMaxClientConns  int            // of one client of the network; ≥ 1
	SSHMaxVMConns      int            // to the port of one VM; ≥ 2
	PortMin            int            // of host ports for published ports that name none
	PortMax            int            // ≥ PortMin
	PortAllowed        []netip.Prefix // networks that may connect to published ports that name none; empty means none

	VMM            string // auto, qemu or firecracker
	QEMUBin        string // a path, or a name to look up in PATH
	FirecrackerBin string // the same
	JailerBin      string // the same, of Firecracker's jailer
	AgentPath      string // absolute
	StopTimeout    time.Duration
	Cgroup         string // absolute in the hierarchy of cgroups, clean, not its root
	UIDMin         int
	UIDMax         int     // ≥ UIDMin
	MemOver        float64 // VMs' memory may add up to this many times the host's
	DiskOver       float64 // VMs' disks may add up to this many times the data directory's space

	HostShutdown        string // sleep or stop
	HostShutdownTimeout time.Duration
	Autostart           string // restore or none

	Warm string // auto, manual or off

	IdleTimeout time.Duration // of new VMs; 0 means no limit
	IdleAction  string        // sleep, stop or none
	// What makes a guest count as active by its own work; 0: nothing does.
	IdleCPUPercent   int   // of one CPU
	IdleNetworkBytes int64 // within IdleTimeout

	MaxSnapshotsPerVM int           // ≥ 1
	SnapshotMaxAge    time.Duration // of automatic ones; 0 means no limit
	SnapshotDiskMiB   int64         // all snapshots together; 0 means no limit

	EventsKeep  time.Duration
	EventsPerVM int
	EventsMax   int

	AuditKeep time.Duration
	AuditMax  int

	WebhookAllowPrivate bool

	Quota Quota // of users that have none of their own

	RateRead, RateWrite, RateCreate Rate // of each key

	ProxyDomain         string // a host name in lower case
	ProxyImplicit       string // guarded or off
	ProxyAddr           string // host:port; "" means that routes are not served
	ProxyTrusted        []netip.Prefix
	E2BAddr             string // host:port; "" means that E2B's clients are not served
	ProxyMaxConns       int    // ≥ 16; requests in progress, too
	ProxyMaxClientConns int    // of one client of the network; ≥ 1
	WakeTimeout         time.Duration

	TLSAddr         string // host:port; "" means that there is no TLS
	TLSCert, TLSKey string // absolute; both "" or none
	HSTSMaxAge      time.Duration
	ACMEEmail       string // "" means that no certificates are obtained
	ACMECA          string // URL; "" means Let's Encrypt
	ACMECARoots     string // absolute; "" means those of the host
	ACMEDNSServer   string // host:port; "" means no DNS challenge
	ACMEDNSKey      string // NAME:SECRET; a secret

	LogLevel  slog.Level
	LogFormat string // text or json

	// Warnings are messages about settings that are valid but probably wrong.
	Warnings []string

	origins map[string]origin // by setting name
}

// Socket says where the API has a unix socket.
type Socket struct {
	Path string // absolute; "" means that hatchd chooses
	Off  bool   // there is none
}

// RunSocket is the socket of a hatchd with the default data directory.
const RunSocket = "/run/hatch/hatchd.sock"

// defaultDataDir is the default of HATCH_DATA_DIR.
const defaultDataDir = "/var/lib/hatch"

// SocketPaths returns where the socket may be, the first first; none if it is off.
func (c Config) SocketPaths() []string {
	own := filepath.Join(c.DataDir, filepath.Base(RunSocket))
	switch {
	case c.Socket.Off:
		return nil
	case c.Socket.Path != "":
		return []string{c.Socket.Path}
	case c.DataDir == defaultDataDir:
		return []string{RunSocket, own}
	}
	return []string{own}
}

// ExposesPlainHTTP reports whether other hosts can reach the API without TLS.
func (c Config) ExposesPlainHTTP() bool {
	host, _, err := net.SplitHostPort(c.HTTPAddr)
	addr, notAddr := netip.ParseAddr(host)
	return err == nil && c.HTTPTLSCert == "" && host != "localhost" && (notAddr != nil || !addr.IsLoopback())
}

// origin is a value as it was given, and its source.
type origin struct {
	raw    string
	source Source
}

// Source is where a value comes from.
type Source string

// The sources, in order of precedence.
const (
	FromFlag    Source = "flag"
	FromEnv     Source = "environment"
	FromFile    Source = "file"
	FromDefault Source = "default"
)

// databaseFile is the SQLite file in the data directory.
const databaseFile = "hatch.db"

// secretsKeyFile is the default key file in the data directory.
const secretsKeyFile = "secrets.key"

// Value is the value of one setting, as `hatchd config` prints it.
type Value struct {
	Name   string // as in the file
	Env    string
	Value  string // secrets are masked
	Source Source
}

// Values returns the values of all settings, in the table's order.
func (c Config) Values() []Value {
	values := make([]Value, 0, len(settings))
	for _, s := range settings {
		o := c.origins[s.Name]
		values = append(values, Value{Name: s.Name, Env: s.Env, Value: s.shown(o.raw), Source: o.source})
	}
	return values
}
