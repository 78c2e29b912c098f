package httpapi

import (
	"net/http"

	"github.com/rs/cors"
)

// allowOrigins lets pages of the configured origins call the API, with a key that they
// have of their own: a browser sends no credentials by itself. It answers preflight
// requests, which have no key.
func (d *door) allowOrigins(next http.Handler) http.Handler {
	if d.origins == nil {
		return next
	}
	return d.origins.Handler(next)
}

// newOrigins returns the rules for pages of the given origins, nil for none.
func newOrigins(origins []string) *cors.Cors {
	if len(origins) == 0 {
		return nil
	}
	const maxAge = 600 // seconds
	return cors.New(cors.Options{
		AllowedOrigins:   origins,
		AllowedMethods:   []string{get, http.MethodHead, post, put, patch, del},
		AllowedHeaders:   []string{"*"},
		ExposedHeaders:   []string{"*", "ETag", "Link", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "X-Request-Id"},
		AllowCredentials: false,
		MaxAge:           maxAge,
	})
}
