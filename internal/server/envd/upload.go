package envd

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// Limits of an upload.
const (
	uploadIdle = time.Minute // how long a client may send nothing
	maxUploads = 10_000      // files of one request
)

// writtenFile is a file that an upload has written.
type writtenFile struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Type string `json:"type"`
}

// upload writes the files of a request, which are of any size.
func (e *Envd) upload(w http.ResponseWriter, r *http.Request, c call) {
	body := connect.Body(w, r, uploadIdle)
	files, err := e.receive(r, c, body)
	if err != nil {
		_, _ = io.CopyN(io.Discard, body, maxDrained) // some clients read no answer before they have sent all
		e.fail(w, r, c, err)
		return
	}
	writeJSON(w, http.StatusOK, files)
}

// maxDrained is how much of a refused upload is read and dropped, in bytes.
const maxDrained = 64 << 20

// receive writes the files of an upload.
func (e *Envd) receive(r *http.Request, c call, body io.Reader) ([]writtenFile, error) {
	for name := range r.Header {
		if strings.HasPrefix(name, "X-Metadata-") {
			return nil, connect.Errorf(connect.InvalidArgument, "%s: metadata of files is not supported", errs.Brief(name))
		}
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		kind = ""
	}
	content, err := decoded(r, body)
	if err != nil {
		return nil, err
	}
	switch kind {
	case "multipart/form-data":
		if params["boundary"] == "" {
			return nil, connect.Errorf(connect.InvalidArgument, "Content-Type: multipart/form-data needs a boundary")
		}
		end := &tail{content: content}
		files, err := e.receiveParts(r, c, multipart.NewReader(end, params["boundary"]))
		if err == nil && !bytes.Contains(end.last, []byte("--"+params["boundary"]+"--")) {
			return nil, errBody // a form that ends within a part's header looks complete
		}
		return files, err
	case "application/octet-stream":
		if !r.URL.Query().Has("path") {
			return nil, connect.Errorf(connect.InvalidArgument, "path: is needed with the content type application/octet-stream")
		}
		written, err := e.receiveFile(r, c, r.URL.Query().Get("path"), content)
		return []writtenFile{written}, err
	default:
		return nil, connect.Errorf(connect.InvalidArgument, "Content-Type: must be multipart/form-data or application/octet-stream")
	}
}

// tail notes the last bytes that were read.
type tail struct {
	content io.Reader
	last    []byte
}

const tailSize = 256 // bytes; a boundary has up to 70

// Read implements [io.Reader].
func (t *tail) Read(p []byte) (int, error) {
	n, err := t.content.Read(p)
	t.last = append(t.last, p[max(0, n-tailSize):n]...)
	t.last = append(t.last[:0], t.last[max(0, len(t.last)-tailSize):]...)
	return n, err
}

// decoded returns the body of an upload without its compression.
func decoded(r *http.Request, body io.Reader) (io.Reader, error) {
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
		return body, nil
	case "gzip":
		content, err := gzip.NewReader(body)
		if err != nil {
			return nil, errBody
		}
		return content, nil
	default:
		return nil, connect.Errorf(connect.InvalidArgument, "Content-Encoding: %q is not supported; send gzip or none", errs.Brief(encoding))
	}
}

var errBody = connect.Errorf(connect.InvalidArgument, "the request's body is not complete, or not in the form that its headers say")

// receiveParts writes the files of a form, each to the path of the query or to the one that
// is its name.
func (e *Envd) receiveParts(r *http.Request, c call, form *multipart.Reader) ([]writtenFile, error) {
	q := r.URL.Query()
	files, seen := []writtenFile{}, map[string]bool{}
	for {
		part, err := form.NextRawPart()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, errBody
		}
		if part.FormName() != "file" {
			continue
		}
		to := q.Get("path")
		if !q.Has("path") || to == "" {
			to = partPath(part)
		}
		if len(files) >= maxUploads {
			return nil, connect.Errorf(connect.InvalidArgument, "a request can write up to %d files", maxUploads)
		}
		written, err := e.receiveFile(r, c, to, part)
		if err != nil {
			return nil, err
		}
		if seen[written.Path] {
			return nil, connect.Errorf(connect.InvalidArgument, "'%s' was sent twice", errs.Brief(written.Path))
		}
		seen[written.Path] = true
		files = append(files, written)
	}
}

// unescape undoes what forms do to names of files.
var unescape = strings.NewReplacer("%22", `"`, "%0D", "\r", "%0A", "\n")

// partPath returns the path that a part of a form names. [multipart.Part.FileName] would
// return its last element only.
func partPath(part *multipart.Part) string {
	_, params, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	if err != nil {
		return ""
	}
	return unescape.Replace(params["filename"])
}

// receiveFile writes one file. Until it is complete, an older one stays.
func (e *Envd) receiveFile(r *http.Request, c call, to string, content io.Reader) (writtenFile, error) {
	if to == "" {
		return writtenFile{}, connect.Errorf(connect.InvalidArgument, "path: must be in the query, or the name of the file in the form")
	}
	at, err := e.resolve(r.Context(), c, to)
	if err != nil {
		return writtenFile{}, err
	}
	owner := file.Owner(c.account())
	source := &source{content: content}
	_, err = e.cfg.Files.Write(r.Context(), c.scope, c.VMID, file.WriteSpec{Path: at, Owner: &owner, Parents: true}, source)
	if source.failed {
		err = errBody
	}
	return writtenFile{Name: path.Base(at), Path: at, Type: "file"}, err
}

// source notes whether content could not be read.
type source struct {
	content io.Reader
	failed  bool
}

// Read implements [io.Reader].
func (s *source) Read(p []byte) (int, error) {
	n, err := s.content.Read(p)
	s.failed = s.failed || err != nil && !errors.Is(err, io.EOF)
	return n, err
}
