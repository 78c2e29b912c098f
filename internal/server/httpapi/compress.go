package httpapi

import (
	"compress/gzip"
	"net/http"
	"strings"

	"github.com/klauspost/compress/gzhttp"
)

// compress compresses answers that are written as a whole, for clients that accept it.
// Streams, the content of files and WebSockets are not: they must reach the client as
// they come, or are compressed already.
func (d *door) compress(mux *http.ServeMux) http.Handler {
	const least = 512 // bytes
	zipped := must(gzhttp.NewWrapper(gzhttp.EnableZstd(false), gzhttp.MinSize(least), gzhttp.CompressionLevel(gzip.BestSpeed),
		gzhttp.SuffixETag(gzipSuffix), gzhttp.ContentTypeFilter(compressible)))(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.streams[callerOf(r.Context()).pattern] && !isEventPage(r) {
			mux.ServeHTTP(w, r)
			return
		}
		zipped(w, r)
	})
}

// compressible reports whether an answer of this type is text.
func compressible(contentType string) bool {
	return strings.Contains(contentType, "json") || strings.Contains(contentType, "yaml") || strings.HasPrefix(contentType, "text/html")
}

// isEventPage reports whether the request is for a page of events, which its route
// writes itself because it can also be a stream.
func isEventPage(r *http.Request) bool {
	return (r.URL.Path == "/events" || strings.HasSuffix(r.URL.Path, "/events")) && !EventQuery{Accept: r.Header.Get("Accept")}.streamed()
}
