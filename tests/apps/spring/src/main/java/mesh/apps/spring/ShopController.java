package mesh.apps.spring;

import java.io.IOException;
import java.util.Map;
import java.util.concurrent.Callable;
import java.util.concurrent.ConcurrentHashMap;
import mesh.apps.Order;
import mesh.apps.OrderException;
import org.springframework.http.HttpStatus;
import org.springframework.http.ResponseEntity;
import org.springframework.web.bind.annotation.ExceptionHandler;
import org.springframework.web.bind.annotation.GetMapping;
import org.springframework.web.bind.annotation.PathVariable;
import org.springframework.web.bind.annotation.PostMapping;
import org.springframework.web.bind.annotation.RequestBody;
import org.springframework.web.bind.annotation.ResponseStatus;
import org.springframework.web.bind.annotation.RestController;
import org.springframework.web.servlet.mvc.method.annotation.SseEmitter;

/** The shop over HTTP: one path a method. */
@RestController
class ShopController {
    private final Service service;
    private final Map<String, SseEmitter> streams = new ConcurrentHashMap<>();

    ShopController(Service service) {
        this.service = service;
    }

    @GetMapping("/who")
    String who() {
        return service.who();
    }

    @GetMapping("/audit")
    String audit() {
        return service.audit();
    }

    @PostMapping("/echo")
    String echo(@RequestBody(required = false) String text) {
        return text == null ? "" : service.echo(text);
    }

    @PostMapping("/orders")
    Order place(@RequestBody Order order) {
        return service.place(order);
    }

    @PostMapping("/reject/{code}")
    void reject(@PathVariable String code) throws OrderException {
        service.reject(code);
    }

    @GetMapping("/crash/{message}")
    String crash(@PathVariable String message) {
        return service.crash(message);
    }

    @GetMapping("/nothing")
    ResponseEntity<Void> nothing() {
        return ResponseEntity.noContent().build();
    }

    @PostMapping(path = "/reverse", produces = "application/octet-stream")
    byte[] reverse(@RequestBody byte[] data) {
        return service.reverse(data);
    }

    @PostMapping("/notices/{id}")
    @ResponseStatus(HttpStatus.ACCEPTED)
    void notice(@PathVariable String id) {
        service.notice(id);
    }

    @GetMapping("/notices/{id}")
    int notices(@PathVariable String id) {
        return service.notices(id);
    }

    @GetMapping("/slow/{millis}")
    String slow(@PathVariable int millis) {
        return service.slow(millis);
    }

    @GetMapping("/later/{millis}")
    Callable<String> later(@PathVariable int millis) {
        return () -> service.slow(millis);
    }

    @GetMapping("/headers")
    Map<String, String> headers() {
        return service.headers();
    }

    /** A stream of server-sent events that stays open: whoever posts to it makes it send one. */
    @GetMapping("/events/{id}")
    SseEmitter events(@PathVariable String id) throws IOException {
        SseEmitter stream = new SseEmitter(60_000L);
        streams.put(id, stream);
        stream.send("open");
        return stream;
    }

    @PostMapping("/events/{id}")
    void event(@PathVariable String id, @RequestBody String text) throws IOException {
        SseEmitter stream = streams.get(id);
        if (text.equals("end")) {
            stream.complete();
        } else {
            stream.send(text);
        }
    }

    @ExceptionHandler(OrderException.class)
    ResponseEntity<Map<String, Object>> refused(OrderException e) {
        Map<String, Object> body =
                Map.of("message", e.getMessage(), "code", e.getCode(), "reasons", e.getReasons());
        return ResponseEntity.status(HttpStatus.UNPROCESSABLE_ENTITY).body(body);
    }

    @ExceptionHandler(IllegalStateException.class)
    ResponseEntity<String> crashed(IllegalStateException e) {
        return ResponseEntity.internalServerError().body(e.getMessage());
    }
}
