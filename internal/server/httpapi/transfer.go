package httpapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/file"
)

const readFileText = `The content of a file in a running VM, of any size; links are followed. Its mode and owner are in headers. ` +
	`An answer that breaks off is cut: it never looks like a whole file.`

const writeFileText = `Write a file in a running VM: the body is its content, of any size and type. The file is replaced in one step once all has come; ` +
	`a request that breaks off leaves the old one. A link at the path stays, and what it leads to is replaced.`

const readTreeText = `A file or tree of a running VM as a tar archive, whose names begin with the last part of the path. Links are kept as links.`

const writeTreeText = `Unpack a tar archive, not compressed, below a directory of a running VM; the directory is made when it is missing. ` +
	`Nothing is written outside of it. What was unpacked before a fault stays. The answer describes the directory.`

const (
	bytesType = "application/octet-stream"
	tarType   = "application/x-tar"
)

type readFileInput struct {
	FilePath
	Range       string `header:"Range" doc:"One range of bytes, as in bytes=0-1023 or bytes=-512; several at once are answered with the whole file."`
	IfRange     string `header:"If-Range" doc:"The ETag that the range is of; the whole file is answered when it has changed."`
	IfNoneMatch string `header:"If-None-Match" doc:"The ETag that is known already; the answer is 304 when it still holds."`
}

func (d *door) readFile(_ context.Context, in *readFileInput) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		d.sendFile(w, r, in)
	}}, nil
}

// sendFile answers with a file, a part of it, or what there is to know of it.
func (d *door) sendFile(w http.ResponseWriter, r *http.Request, in *readFileInput) {
	wanted, isPart := parseRange(in.Range)
	if r.Method == http.MethodHead {
		wanted, isPart = file.ReadSpec{Length: 0}, false
	}
	info, content, err := d.openFile(r.Context(), in, wanted)
	if err == nil && isPart && (in.IfRange != "" && in.IfRange != etag(info) || info.Size < 0) {
		_ = content.Close() // nothing was read
		isPart = false
		info, content, err = d.openFile(r.Context(), in, whole)
	}
	if err != nil {
		d.writeProblem(w, r, err)
		return
	}
	defer func() { _ = content.Close() }() // the answer says what went wrong
	describeFile(w.Header(), info)
	switch {
	case in.IfNoneMatch != "" && in.IfNoneMatch == etag(info):
		w.WriteHeader(http.StatusNotModified)
	case isPart:
		d.sendPart(w, r, wanted, info, content)
	default:
		if info.Size >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
		}
		if w.WriteHeader(http.StatusOK); r.Method != http.MethodHead {
			d.sendContent(w, r, info.Size, content)
		}
	}
}

var whole = file.ReadSpec{Length: -1}

func (d *door) openFile(ctx context.Context, in *readFileInput, part file.ReadSpec) (file.Info, io.ReadCloser, error) {
	part.Path = in.Path
	return d.Files.Read(ctx, owner(ctx), in.ID, part)
}

// parseRange reads a Range header. What it does not understand is the whole
// file, as HTTP asks for.
func parseRange(s string) (part file.ReadSpec, ok bool) {
	unit, value, _ := strings.Cut(s, "=")
	first, last, found := strings.Cut(strings.TrimSpace(value), "-")
	if !strings.EqualFold(strings.TrimSpace(unit), "bytes") || !found {
		return whole, false
	}
	from, fromErr := strconv.ParseUint(first, 10, 63)
	to, toErr := strconv.ParseUint(last, 10, 63)
	switch {
	case fromErr == nil && last == "":
		return file.ReadSpec{Offset: int64(from), Length: -1}, true
	case fromErr == nil && toErr == nil && from <= to:
		return file.ReadSpec{Offset: int64(from), Length: int64(to-from) + 1}, true
	case first == "" && toErr == nil && to > 0:
		return file.ReadSpec{Offset: -int64(to), Length: -1}, true
	}
	return whole, false
}

// sendPart answers with the part of a file that was asked for.
func (d *door) sendPart(w http.ResponseWriter, r *http.Request, part file.ReadSpec, info file.Info, content io.Reader) {
	from := part.Offset
	if from < 0 {
		from = max(0, info.Size+from)
	}
	length := info.Size - from
	if part.Length >= 0 {
		length = min(length, part.Length)
	}
	if length <= 0 {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", info.Size))
		p := newProblem(r.Context(), http.StatusRequestedRangeNotSatisfiable, "range_not_satisfiable",
			fmt.Sprintf("Range: the file has %d bytes, none of which are asked for", info.Size))
		p.write(w)
		return
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+length-1, info.Size))
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	w.WriteHeader(http.StatusPartialContent)
	d.sendContent(w, r, length, content)
}

// sendContent sends size bytes, or all there are when it is negative. When they
// do not all come the connection is cut: the client must not take a part for
// the whole.
func (d *door) sendContent(w http.ResponseWriter, r *http.Request, size int64, content io.Reader) {
	if size >= 0 {
		content = io.LimitReader(content, size)
	}
	n, err := io.Copy(w, content)
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		d.cut(r, err)
	}
}

// describeFile says in headers what is known of a file.
func describeFile(h http.Header, i file.Info) {
	h.Set("Content-Type", bytesType)
	h.Set("Last-Modified", i.ModifiedAt.UTC().Format(http.TimeFormat))
	h.Set("X-Hatch-File-Mode", octal(i.Mode))
	h.Set("X-Hatch-File-Uid", strconv.Itoa(i.UID))
	h.Set("X-Hatch-File-Gid", strconv.Itoa(i.GID))
	if i.Size >= 0 {
		h.Set("Accept-Ranges", "bytes")
		h.Set("ETag", etag(i))
	}
}

// etag changes when the file does, as far as its time and size tell.
func etag(i file.Info) string { return fmt.Sprintf(`"%x-%x"`, i.ModifiedAt.UnixNano(), i.Size) }

// Upload gives a handler the request's body as it comes. It is exported for
// huma.
type Upload struct{ content io.Reader }

// Resolve implements huma.Resolver.
func (u *Upload) Resolve(hc huma.Context) []error {
	u.content = hc.BodyReader()
	return nil
}

type writeFileInput struct {
	FilePath
	Mode    string `query:"mode" maxLength:"5" doc:"In octal; that of the file it replaces, else 0644, when absent."`
	Owner   string `query:"owner" maxLength:"160" doc:"NAME or UID, optionally :GROUP; that of the file it replaces, else root, when absent."`
	Parents bool   `query:"parents" doc:"Make missing directories above it."`
	Upload
}

func (d *door) writeFile(ctx context.Context, in *writeFileInput) (*answer[api.File], error) {
	mode, err := parseMode(in.Mode)
	if err != nil {
		return nil, err
	}
	return shownAs(d.Files.Write(ctx, owner(ctx), in.ID, file.WriteSpec{
		Path: in.Path, Mode: mode, Owner: optionalOwner(in.Owner), Parents: in.Parents,
	}, in.content))
}

func optionalOwner(s string) *file.Owner {
	if s == "" {
		return nil
	}
	o := file.Owner(s)
	return &o
}

func (d *door) readTree(_ context.Context, in *FilePath) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		d.sendTree(w, r, in)
	}}, nil
}

func (d *door) sendTree(w http.ResponseWriter, r *http.Request, in *FilePath) {
	archive, err := d.Files.ReadTree(r.Context(), owner(r.Context()), in.ID, in.Path)
	if err != nil {
		d.writeProblem(w, r, err)
		return
	}
	defer func() { _ = archive.Close() }() // the answer says what went wrong
	w.Header().Set("Content-Type", tarType)
	if w.WriteHeader(http.StatusOK); r.Method != http.MethodHead {
		d.sendContent(w, r, -1, archive)
	}
}

type writeTreeInput struct {
	FilePath
	Owner string `query:"owner" maxLength:"160" doc:"NAME or UID, optionally :GROUP, of all that is unpacked; as the archive's numbers say when absent."`
	Upload
}

func (d *door) writeTree(ctx context.Context, in *writeTreeInput) (*answer[api.File], error) {
	spec := file.TreeSpec{Path: in.Path, Owner: optionalOwner(in.Owner)}
	if err := d.Files.WriteTree(ctx, owner(ctx), in.ID, spec, in.content); err != nil {
		return nil, err
	}
	return shownAs(d.Files.Stat(ctx, owner(ctx), in.ID, in.Path))
}
