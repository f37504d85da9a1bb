package mesh.apps;

import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.TreeMap;

/** A consumer of the shop: the cases that are the same for every framework, and the commands that drive it. */
public abstract class Consumer {
    /** One thing that must work; returns a detail to print, throws when it does not work. */
    public interface Case {
        String run() throws Throwable;
    }

    /** What an answer's headers were, beside its value. */
    public record Headers(Map<String, String> received, Map<String, String> answered) {}

    protected static final int MIB = 1024 * 1024;

    protected final Map<String, Case> cases = new LinkedHashMap<>();

    /** The shop, called synchronously with the default timeout. */
    protected abstract Shop shop();

    /** Calls {@link Shop#headers()} with these headers; answers what the provider saw and what it sent. */
    protected abstract Headers headers(Map<String, String> send) throws Throwable;

    /** Calls a method of the shop that answers a label, with headers and a timeout of its own. */
    protected abstract String label(String method, Map<String, String> headers, int timeoutMillis) throws Throwable;

    /** Sends {@link Shop#notice(String)} without waiting for an answer. */
    protected abstract void notice(String id) throws Throwable;

    protected Consumer() {
        cases.put("plain", () -> same("héllo", shop().echo("héllo")));
        cases.put("empty", () -> same("", shop().echo("")));
        cases.put("null", () -> same(null, shop().nothing("x")));
        cases.put("object", () -> {
            same(Order.sample().accepted(), shop().place(Order.sample()));
            return "all fields";
        });
        cases.put("business-exception", () -> {
            try {
                shop().reject("E42");
            } catch (OrderException e) {
                same("order refused: E42", e.getMessage());
                same("E42", e.getCode());
                same(Arrays.asList("stock", "credit"), e.getReasons());
                return "code, message and reasons";
            }
            throw new AssertionError("no exception");
        });
        cases.put("megabyte", () -> {
            byte[] data = new byte[MIB];
            new java.util.Random(7).nextBytes(data);
            byte[] answer = shop().reverse(data);
            if (answer.length != MIB) {
                throw new AssertionError(answer.length + " bytes came back");
            }
            for (int i = 0; i < MIB; i++) {
                if (answer[i] != data[MIB - 1 - i]) {
                    throw new AssertionError("byte " + i + " differs");
                }
            }
            return MIB + " bytes both ways";
        });
        cases.put("megabyte-text", () -> {
            String text = "茶-tea-".repeat(MIB / 6);
            String answer = shop().echo(text);
            if (!text.equals(answer)) {
                throw new AssertionError("text of " + text.length() + " came back as one of " + answer.length());
            }
            return text.length() + " characters both ways";
        });
        cases.put("headers", () -> {
            Map<String, String> send = new TreeMap<>();
            send.put("x-user", "jo");
            send.put("x-tenant", "blue/green=1; a,b");
            send.put("x-long", "v".repeat(4096));
            Headers headers = headers(send);
            Map<String, String> received = new TreeMap<>(headers.received());
            received.keySet().retainAll(send.keySet());
            same(send, received);
            same("jo", headers.answered().get("x-reply-user"));
            same("done", headers.answered().get("x-reply"));
            return send.size() + " there, 2 back";
        });
        cases.put("one-way", () -> {
            String id = "n" + System.nanoTime();
            for (int i = 0; i < 5; i++) {
                notice(id);
            }
            long deadline = System.nanoTime() + 5_000_000_000L;
            int seen = shop().notices(id);
            while (seen < 5 && System.nanoTime() < deadline) {
                Thread.sleep(10);
                seen = shop().notices(id);
            }
            return same(5, seen) + " notices";
        });
        cases.put("parallel", () -> {
            Thread[] threads = new Thread[16];
            String[] failures = new String[threads.length];
            for (int t = 0; t < threads.length; t++) {
                int thread = t;
                threads[t] = new Thread(() -> {
                    try {
                        for (int i = 0; i < 25; i++) {
                            String text = thread + "/" + i;
                            same(text, shop().echo(text));
                        }
                    } catch (Throwable e) {
                        failures[thread] = describe(e);
                    }
                });
                threads[t].start();
            }
            for (Thread thread : threads) {
                thread.join();
            }
            for (String failure : failures) {
                if (failure != null) {
                    throw new AssertionError(failure);
                }
            }
            return "16 threads, 25 calls each";
        });
    }

    /** Throws unless both are equal; answers the value. */
    protected static <T> T same(T expected, T found) {
        if (!java.util.Objects.equals(expected, found)) {
            throw new AssertionError("expected " + shorten(expected) + ", found " + shorten(found));
        }
        return found;
    }

    /** The chain of causes, each with its class. */
    protected static String describe(Throwable failure) {
        StringBuilder text = new StringBuilder();
        int depth = 0;
        for (Throwable e = failure; e != null && depth < 6; e = e.getCause(), depth++) {
            text.append(depth == 0 ? "" : " <- ").append(e.getClass().getName()).append(": ").append(e.getMessage());
        }
        return shorten(text);
    }

    private static String shorten(Object value) {
        String text = String.valueOf(value);
        return text.length() <= 900 ? text : text.substring(0, 900) + "… (" + text.length() + ")";
    }

    /** READY, then commands from stdin until it ends. Each answers some lines and then {@code done}. */
    public final void serve(Console console) {
        Commands commands = new Commands(this, console);
        console.print("READY");
        for (String line = console.read(); line != null; line = console.read()) {
            if (line.equals("quit")) {
                System.exit(0);
            }
            try {
                commands.run(line);
            } catch (Throwable e) {
                console.print("error " + describe(e));
            }
            console.print("done");
        }
        Runtime.getRuntime().halt(0);
    }
}
