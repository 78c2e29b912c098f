package recipe

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
)

// suite is the Debian release of the images.
const suite = "bookworm"

// KeyringMissing is the code of the error if Debian's mirrors cannot be trusted.
const KeyringMissing = "debian_keyring_missing"

// hostFiles are the files of a host, below a directory.
type hostFiles struct{ root string }

var thisHost = hostFiles{"/"}

// CheckSources returns an error if this host has no Debian mirror to build images
// from. The mirrors are those of [New].
func CheckSources(mirrors []string) error {
	_, err := thisHost.debianLines(mirrors)
	return err
}

// source is one package source of the host: one URI of a line or stanza.
type source struct {
	uri        string
	suites     []string
	components []string
	keyring    string   // Signed-By: a path, or a key; "" means all keys that apt trusts
	options    []string // others, which an entry in one line has in brackets
}

// kinds are the suites of one release that an image needs, by their suffix: the
// release, its updates, its security updates.
var kinds = []string{"", "-updates", "-security"}

// releases are names of Debian's releases in package sources.
var releases = []string{
	"buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid",
	"oldoldstable", "oldstable", "stable", "testing", "unstable",
}

// components of Debian's archive.
var components = []string{"main", "contrib", "non-free", "non-free-firmware"}

// debianLines returns entries for apt, one per line, for the release of the images:
// from the mirrors, and from those in the host's package sources.
func (h hostFiles) debianLines(mirrors []string) (string, error) {
	found, err := h.sources()
	if err != nil {
		return "", err
	}
	var lines []string
	for _, kind := range kinds {
		more, err := h.linesOf(kind, found, mirrors)
		if err != nil {
			return "", err
		}
		if kind == "" && len(more) == 0 {
			return "", errs.New(errs.Unsupported, "no_package_sources", "cannot build the image: HATCH_DEBIAN_MIRROR is not set, and the host's package sources name no Debian mirror").
				WithHint("set HATCH_DEBIAN_MIRROR (debian_mirror in hatchd.yaml) to the URL of a Debian mirror with the suite %s, and restart hatchd", suite)
		}
		lines = append(lines, more...)
	}
	return strings.Join(lines, "\n") + "\n", nil
}

// linesOf returns the entries for the suites of one kind.
func (h hostFiles) linesOf(kind string, found []source, mirrors []string) ([]string, error) {
	if n := mirrorOf(kind); n < len(mirrors) {
		line, err := h.line(source{uri: mirrors[n], components: components[:1]}, kind, false)
		return []string{line}, err
	}
	candidates := h.candidates(kind, found)
	best := 0
	for _, c := range candidates {
		best = max(best, c.rank)
	}
	var lines []string
	for _, c := range candidates {
		if c.rank < best {
			continue
		}
		line, err := h.line(c.source, kind, c.sameRelease)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// candidate is a source that may have a suite of the images.
type candidate struct {
	source
	rank        int  // the higher, the better
	sameRelease bool // the host uses it for the release of the images
}

// candidates returns the sources with suites of one kind. A mirror of Debian has
// those of all supported releases, whichever the host itself uses.
func (h hostFiles) candidates(kind string, found []source) (all []candidate) {
	for _, s := range found {
		for _, name := range s.suites {
			release, ok := strings.CutSuffix(name, kind)
			if !ok || strings.Contains(release, "-") {
				continue
			}
			certainty := h.certainty(s, name, release)
			if certainty == foreign {
				continue
			}
			c := candidate{source: s, rank: 2 * certainty, sameRelease: release == suite}
			if c.sameRelease {
				c.rank++
			}
			all = append(all, c)
		}
	}
	return all
}

// mirrorOf returns which of the configured mirrors has the suites of a kind.
func mirrorOf(kind string) int {
	if kind == "-security" {
		return 1
	}
	return 0
}

// Degrees of certainty that a source is Debian's own archive.
const (
	foreign  = iota // it is not
	possible        // only its suite and components say so
	certain
)

// certainty judges a source by the Release file that the host's apt has of it, else
// by its key, and only without either by its path. Archives of others use the names
// of Debian's suites, too.
func (h hostFiles) certainty(s source, name, release string) int {
	if origin, ok := h.origin(s.uri, name); ok {
		if origin == "Debian" {
			return certain
		}
		return foreign
	}
	if !slices.Contains(releases, release) || !slices.Contains(s.components, "main") {
		return foreign
	}
	switch {
	case strings.HasPrefix(filepath.Base(s.keyring), "debian-archive-"):
		return certain
	case s.keyring != "":
		return foreign
	}
	uri, _ := h.resolve(s.uri) // line reports the error
	for part := range strings.SplitSeq(uri, "/") {
		if part == "debian" || part == "debian-security" {
			return certain
		}
	}
	return possible
}

// maxRelease limits how much of a Release file is read, in bytes. Its fields are at
// the start.
const maxRelease = 64 << 10

// origin returns the field Origin of the Release file that the host's apt has
// fetched from a suite, if it has.
func (h hostFiles) origin(uri, name string) (origin string, ok bool) {
	for _, file := range []string{"InRelease", "Release"} {
		f, err := os.Open(h.path("/var/lib/apt/lists", listName(strings.TrimRight(uri, "/")+"/dists/"+name+"/"+file)))
		if err != nil {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(f, maxRelease))
		_ = f.Close()
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if value, found := strings.CutPrefix(line, "Origin:"); found {
				return strings.TrimSpace(value), true
			}
		}
	}
	return "", false
}

// listName is apt's name of the file with what it has fetched from a URI.
func listName(uri string) string {
	_, rest, _ := strings.Cut(uri, ":")
	rest = strings.TrimPrefix(rest, "//")
	if host, path, ok := strings.Cut(rest, "/"); ok {
		rest = host[strings.LastIndex(host, "@")+1:] + "/" + path
	}
	var b strings.Builder
	for i := range len(rest) {
		switch c := rest[i]; {
		case c == '/':
			b.WriteByte('_')
		case c <= ' ' || c >= 0x7f || strings.IndexByte(`\|{}[]<>"^~_=!@#$%&*`, c) >= 0:
			fmt.Fprintf(&b, "%%%02x", c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// keyrings are the paths of Debian's archive keys on a host.
var keyrings = []string{"/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"}

// line returns the entry for the images' suite of a kind. The host trusts the keys
// of a source that it uses for the same release itself; others must be signed with
// Debian's keys.
func (h hostFiles) line(s source, kind string, sameRelease bool) (string, error) {
	options := s.options
	keyring := ""
	if sameRelease && (s.keyring == "" || strings.HasPrefix(s.keyring, "/")) {
		keyring = s.keyring
	} else if keyring = h.keyring(); keyring == "" {
		return "", errs.New(errs.Unsupported, KeyringMissing, "cannot build the image: the host has no keys of Debian's archive").
			WithHint("apt-get install debian-archive-keyring")
	}
	if keyring != "" {
		options = append(slices.Clone(options), "signed-by="+keyring)
	}
	uri, err := h.resolve(s.uri)
	if err != nil {
		return "", err
	}
	words := []string{"deb"}
	if len(options) > 0 {
		words = append(words, "["+strings.Join(options, " ")+"]")
	}
	words = append(words, uri, suite+kind)
	for _, c := range components {
		if slices.Contains(s.components, c) {
			words = append(words, c)
		}
	}
	return strings.Join(words, " "), nil
}

// keyring returns the path of Debian's archive keys, or "".
func (h hostFiles) keyring() string {
	for _, path := range keyrings {
		if _, err := os.Stat(h.path(path)); err == nil {
			return path
		}
	}
	return ""
}

// resolve returns the first mirror of a list of mirrors that is a file of the host:
// in a guest it is missing. Other URIs are returned unchanged.
func (h hostFiles) resolve(uri string) (string, error) {
	path, ok := strings.CutPrefix(uri, "mirror+file:")
	if !ok {
		return uri, nil
	}
	path = "/" + strings.TrimLeft(path, "/")
	text, err := os.ReadFile(h.path(path))
	if err != nil {
		return "", fmt.Errorf("cannot read the list of mirrors that the host's package sources name: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); len(words) > 0 {
			return words[0], nil
		}
	}
	return "", errs.New(errs.Unsupported, "no_package_sources", "cannot build the image: the list of mirrors that the host's package sources name is empty").
		WithHint("add the URL of a Debian mirror to %s, or set HATCH_DEBIAN_MIRROR (debian_mirror in hatchd.yaml)", path)
}

func (h hostFiles) path(parts ...string) string {
	return filepath.Join(append([]string{h.root}, parts...)...)
}

// sources returns the package sources of the host, of all its files.
func (h hostFiles) sources() ([]source, error) {
	files := []string{h.path("/etc/apt/sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(h.path("/etc/apt/sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, more...)
	}
	var found []source
	for _, path := range files {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the host's package sources: %w", err)
		}
		if strings.HasSuffix(path, ".sources") {
			found = append(found, parseStanzas(string(text))...)
		} else {
			found = append(found, parseLines(string(text))...)
		}
	}
	return found, nil
}

// kept are the options of sources that stay in the entries for images.
var kept = []string{"trusted", "check-valid-until"}

// parseStanzas parses package sources in deb822 form.
func parseStanzas(text string) (found []source) {
	for _, fields := range stanzas(text) {
		if !slices.Contains(strings.Fields(fields["types"]), "deb") || fields["enabled"] == "no" {
			continue
		}
		s := source{suites: strings.Fields(fields["suites"]), components: strings.Fields(fields["components"]), keyring: fields["signed-by"]}
		for _, name := range kept {
			if value := fields[name]; value != "" {
				s.options = append(s.options, name+"="+value)
			}
		}
		for uri := range strings.FieldsSeq(fields["uris"]) {
			s.uri = uri
			found = append(found, s)
		}
	}
	return found
}

// stanzas returns the fields of each stanza, by lower-case name. Lines that continue
// a field are joined with a space.
func stanzas(text string) []map[string]string {
	fields := map[string]string{}
	all := []map[string]string{fields}
	last := ""
	for line := range strings.Lines(text) {
		switch name, value, ok := strings.Cut(line, ":"); {
		case strings.HasPrefix(line, "#"):
		case strings.TrimSpace(line) == "":
			fields, last = map[string]string{}, ""
			all = append(all, fields)
		case line[0] == ' ' || line[0] == '\t':
			fields[last] = strings.TrimSpace(fields[last] + " " + strings.TrimSpace(line))
		case ok:
			last = strings.ToLower(name)
			fields[last] = strings.TrimSpace(value)
		}
	}
	return all
}

var oneLine = regexp.MustCompile(`^\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+(\S.*)$`)

// parseLines parses package sources of one line each.
func parseLines(text string) (found []source) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		match := oneLine.FindStringSubmatch(line)
		if match == nil {
			continue
		}
		s := source{uri: match[2], suites: []string{match[3]}, components: strings.Fields(match[4])}
		for option := range strings.FieldsSeq(match[1]) {
			name, value, _ := strings.Cut(option, "=")
			switch {
			case name == "signed-by":
				s.keyring = value
			case slices.Contains(kept, name):
				s.options = append(s.options, option)
			}
		}
		found = append(found, s)
	}
	return found
}
