// SPDX-License-Identifier: Apache-2.0
// Copyright The XDP Audit Exporter Authors

package leaklab

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"time"
)

// answer is the body of each response.
const answer = "hello, world\n"

// mostRequests is the largest number of requests of a run. Its memory is there before the run.
const mostRequests = 1 << 16

// application waits as many nanoseconds as the path of a request says, and answers. Waiting is
// what a comparison that depends on a secret does: it keeps the CPU busy.
type application struct {
	mu   sync.Mutex
	took []time.Duration // of the handler, in the order of the requests
}

func (a *application) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	ns, err := strconv.Atoi(r.URL.Path[1:])
	if err != nil {
		http.Error(w, "the path is not a number", http.StatusNotFound)
		return
	}
	wasted(time.Duration(ns))
	_, _ = io.WriteString(w, answer) // is sent when the handler returns
	elapsed := time.Since(begin)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.took = append(a.took, elapsed)
}

// wasted keeps the CPU busy for a time.
func wasted(d time.Duration) {
	for begin := time.Now(); time.Since(begin) < d; {
	}
}

// take answers with the times since the last call.
func (a *application) take(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = json.NewEncoder(w).Encode(a.took)
	a.took = a.took[:0]
}

// serve is the process of the application. It returns when it cannot serve.
func serve(address, control string) error {
	a := &application{took: make([]time.Duration, 0, mostRequests)}
	listener, err := net.Listen("unix", control)
	if err != nil {
		return err
	}
	go func() {
		log.Fatal((&http.Server{Handler: http.HandlerFunc(a.take), ReadHeaderTimeout: time.Minute}).Serve(listener))
	}()
	return (&http.Server{Addr: address, Handler: a, ReadHeaderTimeout: time.Minute}).ListenAndServe()
}

// haveNginx returns an error that says how to get nginx.
func haveNginx() error {
	if _, err := exec.LookPath("nginx"); err != nil {
		return fmt.Errorf("nginx is not installed: run make deps: %w", err)
	}
	return nil
}

// nginxConfig is that of a proxy that keeps its connections. It has the address, the address of the
// application, and a directory of its own.
const nginxConfig = `
daemon off;
user root;
master_process off;
pid %[3]s/nginx.pid;
error_log stderr crit;
events {}
http {
	access_log off;
	client_body_temp_path %[3]s/body;
	proxy_temp_path %[3]s/proxy;
	fastcgi_temp_path %[3]s/fastcgi;
	uwsgi_temp_path %[3]s/uwsgi;
	scgi_temp_path %[3]s/scgi;
	keepalive_requests 1000000;
	keepalive_timeout 10m;
	upstream application {
		server %[2]s;
		keepalive 8;
		keepalive_requests 1000000;
		keepalive_timeout 10m;
	}
	server {
		listen %[1]s;
		location / {
			proxy_pass http://application;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
		}
	}
}
`
