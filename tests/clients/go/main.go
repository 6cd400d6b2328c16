// Go's own net/rpc/jsonrpc: JSON-RPC 1.0 in a stream, over one TCP connection. It has neither batches nor notifications.
//
// usage: go run main.go HOST:PORT
package main

import (
	"fmt"
	"log"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"reflect"
	"runtime"
	"strings"
)

const calls = 1000

type paper struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func main() {
	client, err := jsonrpc.Dial("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	done := make(chan *rpc.Call, calls)
	for n := 0; n < calls; n++ {
		client.Go("ping", n, new([]int), done)
	}
	for n := 0; n < calls; n++ {
		call := <-done
		if call.Error != nil || !reflect.DeepEqual(*call.Reply.(*[]int), []int{call.Args.(int)}) {
			log.Fatalf("a call: expected [%v], found %v, %v", call.Args, call.Reply, call.Error)
		}
	}

	expectError(client, "fail", paper{7, "out of paper"}, "out of paper (code 7)")
	expectError(client, "nothing", nil, "method not found: `nothing`")
	fmt.Printf("Go's net/rpc/jsonrpc %s, TCP: %d calls, all at once, errors\n", runtime.Version(), calls)
}

// Ends the program unless the call is answered by Go's own type for an error of the server, whose text begins so.
func expectError(client *rpc.Client, method string, params any, text string) {
	err := client.Call(method, params, new(any))
	if _, ours := err.(rpc.ServerError); !ours || !strings.HasPrefix(err.Error(), text) {
		log.Fatalf("%s: expected an error %q, found %T %v", method, text, err, err)
	}
}
