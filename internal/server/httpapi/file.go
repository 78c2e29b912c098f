package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
)

const watchFilesText = `Server-sent events about a file or directory of a running VM, which is woken if it sleeps: created, written, removed, renamed, chmodded. ` +
	`The data of each is a FileChange. The answer begins once no later change can be missed, and ends when the client disconnects; ` +
	`when the VM ends or the path is removed, the connection is cut.`

// Files accesses the files in VMs. [file.Service] implements it.
type Files interface {
	Stat(ctx context.Context, scope access.Scope, vmID, path string) (file.Info, error)
	List(ctx context.Context, scope access.Scope, vmID, path string, each func(file.Info) error) error
	MakeDirectory(ctx context.Context, scope access.Scope, vmID string, spec file.DirectorySpec) (file.Info, error)
	Rename(ctx context.Context, scope access.Scope, vmID, from, to string) (file.Info, error)
	Remove(ctx context.Context, scope access.Scope, vmID string, spec file.RemoveSpec) error
	Watch(ctx context.Context, scope access.Scope, vmID, path string, recursive bool, began func(), report func(file.Change) error) error
	CloudInitLog(ctx context.Context, scope access.Scope, vmID string, lines int, follow bool, w io.Writer) error
	Transfers
}

// Transfers copies the content of files.
type Transfers interface {
	Read(ctx context.Context, scope access.Scope, vmID string, spec file.ReadSpec) (file.Info, io.ReadCloser, error)
	Write(ctx context.Context, scope access.Scope, vmID string, spec file.WriteSpec, content io.Reader) (file.Info, error)
	ReadTree(ctx context.Context, scope access.Scope, vmID, path string) (io.ReadCloser, error)
	WriteTree(ctx context.Context, scope access.Scope, vmID string, spec file.TreeSpec, archive io.Reader) error
}

// fileHandlers serves the files in VMs; transfer.go has their content.
type fileHandlers struct {
	*door
	files Files
}

// isOfFiles reports whether a request's path belongs to the routes about files in a
// VM.
func isOfFiles(requestPath string) bool {
	rest, ofVMs := strings.CutPrefix(requestPath, "/vms/")
	_, rest, _ = strings.Cut(rest, "/")
	return ofVMs && (rest == "files" || strings.HasPrefix(rest, "files/"))
}

// isUpload reports whether a request's body is the content of a file.
func isUpload(r *http.Request) bool { return r.Method == http.MethodPut && isOfFiles(r.URL.Path) }

// FilePath is the input of routes about one path in a VM.
type FilePath struct {
	IDPath
	Path string `query:"path" required:"true" doc:"Absolute, in the guest; any bytes, percent-encoded."`
}

func (h *fileHandlers) stat(ctx context.Context, in *FilePath) (*answer[api.File], error) {
	return shownAs(h.files.Stat(ctx, scope(ctx), in.ID, in.Path))
}

// shownAs makes the answer about one file.
func shownAs(i file.Info, err error) (*answer[api.File], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.File]{Body: shownFile(i)}, nil
}

// list streams the entries: a directory may be large.
func (h *fileHandlers) list(ctx context.Context, in *FilePath) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		out := &textWriter{to: w, kind: "application/json"}
		h.endStream(w, r, out, h.writeList(r.Context(), in, out))
	}}, nil
}

func (h *fileHandlers) writeList(ctx context.Context, in *FilePath, w io.Writer) error {
	const batch = 32 << 10 // bytes
	out := bufio.NewWriterSize(w, batch)
	separator := "["
	err := h.files.List(ctx, scope(ctx), in.ID, in.Path, func(i file.Info) error {
		entry, err := json.Marshal(shownFile(i))
		if err != nil {
			return fmt.Errorf("cannot encode a file: %w", err)
		}
		_, err = out.WriteString(separator + string(entry))
		separator = ","
		return err
	})
	if err != nil {
		return err
	}
	end := "]\n"
	if separator == "[" { // no entry
		end = "[]\n"
	}
	if _, err := out.WriteString(end); err != nil {
		return err
	}
	return out.Flush()
}

type makeDirectoryInput struct {
	IDPath
	Body api.MakeDirectory
}

func (h *fileHandlers) makeDirectory(ctx context.Context, in *makeDirectoryInput) (*answer[api.File], error) {
	p, err := givenPath("path", in.Body.Path, in.Body.PathEncoded)
	if err != nil {
		return nil, err
	}
	spec := file.DirectorySpec{Path: p, Mode: 0o755, Owner: file.Owner(in.Body.Owner), Parents: in.Body.Parents}
	mode, err := parseMode(in.Body.Mode)
	if err != nil {
		return nil, err
	}
	if mode != nil {
		spec.Mode = *mode
	}
	return shownAs(h.files.MakeDirectory(ctx, scope(ctx), in.ID, spec))
}

type renameFileInput struct {
	IDPath
	Body api.RenameFile
}

func (h *fileHandlers) rename(ctx context.Context, in *renameFileInput) (*answer[api.File], error) {
	from, err := givenPath("from", in.Body.From, in.Body.FromEncoded)
	if err != nil {
		return nil, err
	}
	to, err := givenPath("to", in.Body.To, in.Body.ToEncoded)
	if err != nil {
		return nil, err
	}
	return shownAs(h.files.Rename(ctx, scope(ctx), in.ID, from, to))
}

type removeFileInput struct {
	FilePath
	FileConditions
	Recursive bool `query:"recursive" doc:"A directory and everything in it, too."`
}

func (h *fileHandlers) remove(ctx context.Context, in *removeFileInput) (*answer[api.Deleted], error) {
	condition, err := in.forGuest()
	if err != nil {
		return nil, err
	}
	if err := h.files.Remove(ctx, scope(ctx), in.ID, file.RemoveSpec{Path: in.Path, Recursive: in.Recursive, If: condition}); err != nil {
		return nil, err
	}
	return deleted(), nil
}

type watchFilesInput struct {
	FilePath
	Recursive bool `query:"recursive" doc:"Everything below a directory, too."`
}

// watch begins its answer once no later change can be missed.
func (h *fileHandlers) watch(_ context.Context, in *watchFilesInput) (*huma.StreamResponse, error) {
	return h.eventStream(func(ctx context.Context, w io.Writer) error {
		return keptAlive(ctx, w, func(ctx context.Context, out *eventWriter) error {
			began := func() { _ = out.begin() } // an error means that the client has disconnected
			return h.files.Watch(ctx, scope(ctx), in.ID, in.Path, in.Recursive, began, func(c file.Change) error {
				text, err := json.Marshal(shownChange(c))
				if err != nil {
					return fmt.Errorf("cannot encode a change: %w", err)
				}
				return out.send(string(text))
			})
		})
	}), nil
}

// givenPath returns a path of a body, given as text or percent-encoded.
func givenPath(field, plain, encoded string) (string, error) {
	if encoded == "" {
		return plain, nil
	}
	if plain != "" {
		return "", errs.InvalidField(field, "give either %s or %s_encoded", field, field)
	}
	p, err := url.PathUnescape(encoded)
	if err != nil {
		return "", errs.InvalidField(field+"_encoded", "is not percent-encoded")
	}
	return p, nil
}

// parseMode reads a mode in octal; nil when there is none.
func parseMode(s string) (*uint32, error) {
	if s == "" {
		return nil, nil
	}
	n, err := strconv.ParseUint(s, 8, 16)
	if err != nil {
		return nil, errs.InvalidField("mode", "%q is not a mode: want octal digits, such as 0644", errs.Brief(s))
	}
	mode := uint32(n)
	return &mode, nil
}

// shownFile returns a file as the API shows it.
func shownFile(i file.Info) api.File {
	out := api.File{
		Kind: string(i.Kind), Size: max(i.Size, 0), Mode: octal(i.Mode), UID: i.UID, GID: i.GID,
		User: valid(i.User), Group: valid(i.Group), ModifiedAt: utc(i.ModifiedAt),
	}
	out.Path, out.PathEncoded = twoWays(i.Path)
	out.Name, out.NameEncoded = twoWays(path.Base(i.Path))
	out.Target, out.TargetEncoded = twoWays(i.Target)
	return out
}

func shownChange(c file.Change) api.FileChange {
	out := api.FileChange{Kind: string(c.Kind), At: utc(c.At)}
	out.Path, out.PathEncoded = twoWays(c.Path)
	out.From, out.FromEncoded = twoWays(c.From)
	return out
}

func octal(mode uint32) string { return fmt.Sprintf("%04o", mode) }

func valid(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// twoWays returns bytes as text and, if they are not UTF-8, percent-encoded, for a
// query or a body.
func twoWays(s string) (text, encoded string) {
	if utf8.ValidString(s) {
		return s, ""
	}
	return valid(s), strings.NewReplacer("+", "%20", "%2F", "/").Replace(url.QueryEscape(s))
}
