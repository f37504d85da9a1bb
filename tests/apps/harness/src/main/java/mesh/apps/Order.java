package mesh.apps;

import java.io.Serializable;
import java.util.ArrayList;
import java.util.Date;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/** A value with one field of each kind that business objects usually have. */
public class Order implements Serializable {
    private static final long serialVersionUID = 1L;

    /** Where an order stands. */
    public enum State {
        NEW,
        PLACED
    }

    private long number;
    private String customer;
    private State state = State.NEW;
    private Date placed;
    private List<String> items = new ArrayList<>();
    private Map<String, Integer> quantities = new LinkedHashMap<>();
    private byte[] signature = new byte[0];
    private double total;
    private Order parent;

    public static Order sample() {
        Order parent = new Order();
        parent.setNumber(1);
        parent.setCustomer("parent");
        Order order = new Order();
        order.setNumber(1L << 40);
        order.setCustomer("Zoë 顾客 \uD83D\uDE80");
        order.setPlaced(new Date(1_700_000_000_000L));
        order.setItems(new ArrayList<>(List.of("tea", "", "茶")));
        order.getQuantities().put("tea", 3);
        order.getQuantities().put("茶", -1);
        order.setSignature(new byte[] {0, 1, (byte) 0xff});
        order.setTotal(12.75);
        order.setParent(parent);
        return order;
    }

    /** The order as a provider answers it: everything as it came, and the state moved on. */
    public Order accepted() {
        state = State.PLACED;
        return this;
    }

    /** All fields in a form that two JVMs can compare. */
    public String fingerprint() {
        return number + "|" + customer + "|" + state + "|" + (placed == null ? null : placed.getTime()) + "|" + items
                + "|" + new java.util.TreeMap<>(quantities) + "|" + java.util.Arrays.toString(signature) + "|" + total
                + "|" + (parent == null ? null : parent.fingerprint());
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof Order && Objects.equals(fingerprint(), ((Order) other).fingerprint());
    }

    @Override
    public int hashCode() {
        return fingerprint().hashCode();
    }

    public long getNumber() {
        return number;
    }

    public void setNumber(long number) {
        this.number = number;
    }

    public String getCustomer() {
        return customer;
    }

    public void setCustomer(String customer) {
        this.customer = customer;
    }

    public State getState() {
        return state;
    }

    public void setState(State state) {
        this.state = state;
    }

    public Date getPlaced() {
        return placed;
    }

    public void setPlaced(Date placed) {
        this.placed = placed;
    }

    public List<String> getItems() {
        return items;
    }

    public void setItems(List<String> items) {
        this.items = items;
    }

    public Map<String, Integer> getQuantities() {
        return quantities;
    }

    public void setQuantities(Map<String, Integer> quantities) {
        this.quantities = quantities;
    }

    public byte[] getSignature() {
        return signature;
    }

    public void setSignature(byte[] signature) {
        this.signature = signature;
    }

    public double getTotal() {
        return total;
    }

    public void setTotal(double total) {
        this.total = total;
    }

    public Order getParent() {
        return parent;
    }

    public void setParent(Order parent) {
        this.parent = parent;
    }
}
