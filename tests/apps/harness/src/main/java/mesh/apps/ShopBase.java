package mesh.apps;

import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;

/** The service without the framework: what remains is how headers are read and written. */
public abstract class ShopBase implements Shop {
    private final String label;
    private final Map<String, Integer> notices = new ConcurrentHashMap<>();

    protected ShopBase(String label) {
        this.label = label;
    }

    @Override
    public String who() {
        return label;
    }

    @Override
    public String audit() {
        return label;
    }

    @Override
    public String echo(String text) {
        return text;
    }

    @Override
    public Order place(Order order) {
        return order.accepted();
    }

    @Override
    public void reject(String code) throws OrderException {
        throw new OrderException("order refused: " + code, code, List.of("stock", "credit"));
    }

    @Override
    public String crash(String message) {
        throw new IllegalStateException(message);
    }

    @Override
    public String nothing(String ignored) {
        return null;
    }

    @Override
    public byte[] reverse(byte[] data) {
        byte[] reversed = new byte[data.length];
        for (int i = 0; i < data.length; i++) {
            reversed[i] = data[data.length - 1 - i];
        }
        return reversed;
    }

    @Override
    public void notice(String id) {
        notices.merge(id, 1, Integer::sum);
    }

    @Override
    public int notices(String id) {
        return notices.getOrDefault(id, 0);
    }

    @Override
    public String slow(int millis) {
        try {
            Thread.sleep(millis);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
        return label;
    }
}
