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
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
)

const readFileText = `The content of a file in a running VM, of any size; links are followed. Its mode and owner are in headers. ` +
	`If reading fails, the connection is cut, so that the response never looks complete.`

const writeFileText = `Write a file in a running VM: the body is its content, of any size and type. The file is replaced atomically after the whole body has arrived; ` +
	`an incomplete request leaves the old file. If the path is a symbolic link, its target is replaced.

` +
	`With If-Match the file is replaced only if it still is as the ETag of a GET says, and with If-None-Match: * only if there is none; else the status is 412. ` +
	`The guest checks this before the upload and again when it replaces the file.`

const readTreeText = `A file or tree of a running VM as a tar archive, whose names begin with the last part of the path. Symbolic links are not followed.`

const writeTreeText = `Unpack a tar archive, not compressed, below a directory of a running VM; a missing directory is created. ` +
	`No file is written outside of it. Files that were unpacked before an error stay. The response describes the directory.`

const (
	bytesType = "application/octet-stream"
	tarType   = "application/x-tar"
)

type readFileInput struct {
	FilePath
	Range   string `header:"Range" doc:"One range of bytes, such as bytes=0-1023 or bytes=-512; for several ranges the whole file is returned."`
	IfRange string `header:"If-Range" doc:"The ETag that the range belongs to; if the file has changed, the whole file is returned."`
	FileConditions
	IfModifiedSince string `header:"If-Modified-Since" doc:"The Last-Modified of the client's copy; the status is 304 if it is still current. Ignored with If-None-Match."`
}

func (h *fileHandlers) read(_ context.Context, in *readFileInput) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		h.sendFile(w, r, in)
	}}, nil
}

// sendFile answers with a file, a part of it, or only its headers.
func (h *fileHandlers) sendFile(w http.ResponseWriter, r *http.Request, in *readFileInput) {
	wanted, isPart := parseRange(in.Range)
	if r.Method == http.MethodHead {
		wanted, isPart = file.ReadSpec{Length: 0}, false
	}
	info, content, err := h.openFile(r.Context(), in, wanted)
	if err == nil && isPart && (in.IfRange != "" && in.IfRange != etag(info) || info.Size < 0) {
		_ = content.Close() // nothing was read
		isPart = false
		info, content, err = h.openFile(r.Context(), in, whole)
	}
	if err != nil {
		h.writeProblem(w, r, err)
		return
	}
	defer func() { _ = content.Close() }() // read errors cut the connection
	current, err := in.compare(info, in.IfModifiedSince)
	if err != nil {
		h.writeProblem(w, r, err)
		return
	}
	describeFile(w.Header(), info)
	switch {
	case current:
		w.WriteHeader(http.StatusNotModified)
	case isPart:
		h.sendPart(w, r, wanted, info, content)
	default:
		if info.Size >= 0 {
			w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
		}
		if w.WriteHeader(http.StatusOK); r.Method != http.MethodHead {
			h.sendContent(w, r, info.Size, content)
		}
	}
}

var whole = file.ReadSpec{Length: -1}

func (h *fileHandlers) openFile(ctx context.Context, in *readFileInput, part file.ReadSpec) (file.Info, io.ReadCloser, error) {
	part.Path = in.Path
	return h.files.Read(ctx, scope(ctx), in.ID, part)
}

// parseRange parses a Range header. An unknown form means the whole file, as HTTP
// requires.
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

// sendPart answers with the requested part of a file.
func (h *fileHandlers) sendPart(w http.ResponseWriter, r *http.Request, part file.ReadSpec, info file.Info, content io.Reader) {
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
			fmt.Sprintf("Range: the range begins after the end of the file, which has %d bytes", info.Size))
		p.write(w)
		return
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, from+length-1, info.Size))
	w.Header().Set("Content-Length", strconv.FormatInt(length, 10))
	w.WriteHeader(http.StatusPartialContent)
	h.sendContent(w, r, length, content)
}

// sendContent sends size bytes, or all if size is negative. If the content ends early
// it cuts the connection: the client must not take a part for the whole.
func (h *fileHandlers) sendContent(w http.ResponseWriter, r *http.Request, size int64, content io.Reader) {
	if size >= 0 {
		content = io.LimitReader(content, size)
	}
	n, err := io.Copy(w, content)
	if err == nil && n < size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		h.cut(r, err)
	}
}

// describeFile sets the headers about a file.
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

// etag changes with the file's time or size. A file whose content the kernel generates
// has none.
func etag(i file.Info) string {
	if i.Size < 0 {
		return ""
	}
	return fmt.Sprintf(`"%x-%x"`, i.ModifiedAt.UnixNano(), i.Size)
}

// Upload streams the request's body to a handler. It is exported for huma.
type Upload struct{ content io.Reader }

// Resolve implements huma.Resolver.
func (u *Upload) Resolve(hc huma.Context) []error {
	u.content = hc.BodyReader()
	return nil
}

type writeFileInput struct {
	FilePath
	Mode    string `query:"mode" maxLength:"5" doc:"In octal. By default that of the replaced file, else 0644."`
	Owner   string `query:"owner" maxLength:"160" doc:"NAME or UID, optionally :GROUP. By default that of the replaced file, else root."`
	Parents bool   `query:"parents" doc:"Create missing parent directories."`
	FileConditions
	Upload
}

func (h *fileHandlers) write(ctx context.Context, in *writeFileInput) (*tagged[api.File], error) {
	mode, err := parseMode(in.Mode)
	if err != nil {
		return nil, err
	}
	condition, err := in.forGuest()
	if err != nil {
		return nil, err
	}
	info, err := h.files.Write(ctx, scope(ctx), in.ID, file.WriteSpec{
		Path: in.Path, Mode: mode, Owner: optionalOwner(in.Owner), Parents: in.Parents, If: condition,
	}, in.content)
	if err != nil {
		return nil, err
	}
	return &tagged[api.File]{Status: http.StatusOK, ETag: etag(info), Body: shownFile(info)}, nil
}

func optionalOwner(s string) *file.Owner {
	if s == "" {
		return nil
	}
	o := file.Owner(s)
	return &o
}

func (h *fileHandlers) readTree(_ context.Context, in *FilePath) (*huma.StreamResponse, error) {
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		r, w := humago.Unwrap(hc)
		h.sendTree(w, r, in)
	}}, nil
}

func (h *fileHandlers) sendTree(w http.ResponseWriter, r *http.Request, in *FilePath) {
	archive, err := h.files.ReadTree(r.Context(), scope(r.Context()), in.ID, in.Path)
	if err != nil {
		h.writeProblem(w, r, err)
		return
	}
	defer func() { _ = archive.Close() }() // read errors cut the connection
	w.Header().Set("Content-Type", tarType)
	if w.WriteHeader(http.StatusOK); r.Method != http.MethodHead {
		h.sendContent(w, r, -1, archive)
	}
}

type writeTreeInput struct {
	FilePath
	Owner string `query:"owner" maxLength:"160" doc:"NAME or UID, optionally :GROUP, of all unpacked files. By default the numeric ids in the archive."`
	Conditions
	Upload
}

func (h *fileHandlers) writeTree(ctx context.Context, in *writeTreeInput) (*answer[api.File], error) {
	if in.IfMatch != "" || in.IfNoneMatch != "" {
		return nil, errs.New(errs.Unsupported, "condition_not_supported", "cannot obey If-Match or If-None-Match: a tree has no ETag").
			WithHint("send the request without them")
	}
	spec := file.TreeSpec{Path: in.Path, Owner: optionalOwner(in.Owner)}
	if err := h.files.WriteTree(ctx, scope(ctx), in.ID, spec, in.content); err != nil {
		return nil, err
	}
	return shownAs(h.files.Stat(ctx, scope(ctx), in.ID, in.Path))
}
